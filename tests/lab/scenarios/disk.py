# SPDX-License-Identifier: Apache-2.0
"""Disks: 256 MiB from one to another under a storm, bit for bit; a read-only one; discard; no request lost or doubled."""

import json
import os

from guest import Machine, Ours
from load import requests_of_disk
from warnings_of_kernels import bad_lines

MEGABYTES = {"quick": 32, "full": 256, "long": 256}
TO_THE_END = 1_000_000  # stops, more than come until it is told to end


def run(lab, options, checks):
    megabytes = MEGABYTES[options.mode]
    lab.must(f"head -c {megabytes}M /dev/urandom >/tmp/from.img; truncate -s {megabytes}M /tmp/to.img", 300)
    guest = Ours.linux(lab, options, Machine((options.cpus or [2])[0], disks=["/tmp/from.img,ro", "/tmp/to.img"]))
    guest.up()
    copies(lab, options, checks, guest, megabytes)
    checks.equal("a read-only disk is one to the guest", guest.shell("blockdev --getro /dev/vda")[1].strip(), "1")
    checks.that("and cannot be written", guest.shell("dd if=/dev/zero of=/dev/vda count=1 conv=fsync")[0] != 0)
    discards(lab, checks, guest)
    counts(checks, guest)
    checks.equal("no I/O error in the guest's log",
                 [line for line in bad_lines(guest.shell("dmesg -r")[1]) if "vda" not in line], [])
    guest.type("poweroff -f\n")
    checks.equal("poweroff ends `run` with 0", guest.end().status, 0)


def copies(lab, options, checks, guest, megabytes):
    storm = lab.start(["sh", "-c", f"{os.path.join(options.programs, 'lab_storm')} guest {TO_THE_END} {options.seed} "
                                   "0 0 & echo $! >/run/storm.pid; wait $!"])
    status, said = guest.shell("dd if=/dev/vda of=/dev/vdb bs=1M iflag=direct oflag=direct conv=fsync", 900)
    lab.must("kill $(cat /run/storm.pid)")
    tally = json.loads(storm.wait(120).output.strip().splitlines()[-1])
    checks.that(f"the guest reads {megabytes} MiB from one disk and writes them to another in {tally['stops']} stops",
                status == 0 and tally["stops"] > 0 and not tally["failure"], f"{said} {tally}")
    same = lab.run("cmp /tmp/from.img /tmp/to.img", 300)
    checks.that("the host's files are the same", same.status == 0, same.output)


def discards(lab, checks, guest):
    before = int(lab.must("stat -c %b /tmp/to.img"))
    checks.equal("discard of the whole disk", guest.shell("blkdiscard /dev/vdb", 120)[0], 0)
    after = int(lab.must("stat -c %b /tmp/to.img"))
    checks.that("gives the host its room back", after < before // 8, f"{before} blocks before, {after} after")


def counts(checks, guest):
    """What the driver has completed is what the device has done, to the last request."""
    guest.shell("sync; echo 3 >/proc/sys/vm/drop_caches")
    told = {device["device"]: device["requests"]
            for device in json.loads(guest.must("status", "--json"))["devices"]}
    for disk, name in (("vda", "disk0"), ("vdb", "disk1")):
        # GET_ID, by which the driver reads the serial number for sysfs, is no I/O to the kernel's counters.
        checks.that(f"no request of {disk} is lost or doubled: the guest and the device count the same",
                    told.get(name) == requests_of_disk(guest, disk),
                    f"the device {told}, the guest {requests_of_disk(guest, disk)}")
