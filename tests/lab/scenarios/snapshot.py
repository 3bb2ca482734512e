# SPDX-License-Identifier: Apache-2.0
"""A guest under load is put on disk with its disks, and a copy of it goes on from there to a clean shutdown."""

import os
import time

from guest import Machine, Ours
from load import FIO, SQL, Load
from scenarios.patch import PATIENT, UID, Patcher, system_call, uid
from warnings_of_kernels import accepted, bad_lines, warnings

SNAPSHOTS = {"quick": 1, "full": 1, "long": 30}  # or --stops; two of three are live
KINDS = (["--disks", "--live"], ["--disks"], ["--disks", "--live", "--compress"])  # take turns
RESTORES = (["--prefault"], [])  # the same
# The event of a new VM generation is handled by a real-time thread (drivers/acpi/evged.c), first thing in a copy. Where
# memory comes on touch it waits for each MiB that it needs: on a software CPU for more than 0.95 s of one, at times.
WAITS_FOR_MEMORY = ("sched: RT throttling activated",)
WATCHDOG_S = 10  # a lockup is told after twice that
KNOWS_GENERATIONS = "amd64"  # the kernel with CONFIG_VMGENID
REGENERATED = "crng reseeded due to virtual machine fork"
# As Load.one_pass() has it; it says when it is in the midst of it.
PASS = ("{fio} >/tmp/fio 2>&1 & fio=$!; echo PASS-BEGUN; sqlite3 /data/db \"{sql}\" >/tmp/sql 2>&1; sql=$?; wait $fio; "
        "fio=$?; cat /tmp/sql; [ $fio = 0 ] || cat /tmp/fio; [ $fio$sql = 00 ]")


def restore_of(number):
    return RESTORES[number % len(RESTORES)]


def run(lab, options, checks):
    cpus, flavour = (options.cpus or [2])[0], (options.kernel or [KNOWS_GENERATIONS])[0]
    lab.must("truncate -s 32M /tmp/raw.img; truncate -s 128M /tmp/data.img; mkfs.ext4 -q /tmp/data.img")
    guest = Ours.linux(lab, options, Machine(
        cpus, flavour, 512, f"lab.programs watchdog_thresh={WATCHDOG_S}",
        disks=[options.images.programs() + ",ro", "/tmp/raw.img", "/tmp/data.img"],
        programs=[("bin/clock_check", os.path.join(options.programs, "lab_clock"))]))
    guest.up(300)
    load = Load(guest, checks)
    load.start()
    patcher = Patcher(lab, guest)
    patcher.must("apply", system_call(checks, guest, patcher), *PATIENT)
    for number in range(options.stops or SNAPSHOTS[options.mode]):
        checks.prefix = f"{flavour}, {cpus} vCPUs, snapshot {number}: "
        copy = one_snapshot(lab, options, checks, load, number)
        if flavour == KNOWS_GENERATIONS:
            checks.that("the copy knows that it is one", REGENERATED in copy.guest.shell("dmesg")[1])
        more_known = WAITS_FOR_MEMORY if "--prefault" in restore_of(number) else ()
        comes_to_its_end(lab, checks, copy, f"/tmp/data{number}.img", more_known)
        lab.must(f"rm -r /tmp/*{number}.img /tmp/snapshot{number}")
        guest.must("resume")
    checks.prefix = f"{flavour}, {cpus} vCPUs, the original: "
    patcher.must("revert", "getuid", *PATIENT)
    comes_to_its_end(lab, checks, load, "/tmp/data.img")


def one_snapshot(lab, options, checks, load, number):
    """The guest is put on disk amid a pass over its disks, which it and its copy both finish. Leaves the guest held.
    Returns the copy's load."""
    guest, place = load.guest, f"/tmp/snapshot{number}"
    clock = Clock(guest)
    guest.type(PASS.format(fio=FIO.format(letter="b", mb=4, seed=1000 + number), sql=SQL) + "\n")
    guest.expect("PASS-BEGUN", 300)
    made = lab.run([*guest.words("snapshot", "create", guest.name, place), *KINDS[number % len(KINDS)]], 300)
    clock.is_on_disk()
    checks.that(f"it is made: {made.output.strip()}", made.status == 0, made.output)
    ends_well(checks, guest, "the pass amid which it was made comes to its end")
    load.passes += 1
    guest.must("pause")
    clock.goes_on()
    disks = [word for n, name in ((1, "raw"), (2, "data")) for word in ("--disk", f"{n}=/tmp/{name}{number}.img")]
    copy = Ours(lab, options, f"copy{number}", ["--restore", place, *disks, *restore_of(number)], port=1)
    ends_well(checks, copy, "that pass comes to its end in the copy as well")
    clock.check(checks, copy)
    copied = Patcher(lab, copy)
    verified = copied.run("verify")
    checks.that("its patch is there as it was", verified.status == 0, verified.output)
    checks.equal("and does what it did", uid(copy), str(UID))
    copied.must("revert", "getuid", *PATIENT)
    checks.equal("until it is reverted", uid(copy), "0")
    more = Load(copy, checks)
    more.one_pass(4, 300)
    return more


class Clock:
    """The guest's clock does not go while it is on disk, and goes on where it was."""

    SLACK_S = 1.0

    def __init__(self, guest):
        self.begin = time.monotonic()
        self.then = self.uptime(guest)

    @staticmethod
    def uptime(guest):
        return float(guest.shell("cut -d ' ' -f 1 /proc/uptime")[1])

    def is_on_disk(self):
        self.ended = time.monotonic()

    def goes_on(self):
        while time.monotonic() - self.ended <= 2 * self.SLACK_S:  # a jump must be more than what cannot be told
            time.sleep(0.1)
        self.again = time.monotonic()

    def check(self, checks, copy):
        gone = self.uptime(copy) - self.then
        at_most = self.ended - self.begin + time.monotonic() - self.again
        gap = self.again - self.ended
        checks.that(f"its clock has no jump over the {gap:.1f} s on disk", 0 <= gone <= at_most + self.SLACK_S,
                    f"{gone:.2f} s have gone there, at most {at_most:.2f} here")


def ends_well(checks, guest, what):
    status = int(guest.expect(r"^@@(\d+)@@", 300)[1])
    checks.that(what, status == 0, guest.text()[-1500:])


def comes_to_its_end(lab, checks, load, image, more_known=()):
    """Its load is ended, its log looked at, and it switches itself off; the file system is clean then."""
    guest = load.guest
    load.finish()
    _, log = guest.shell("dmesg -r")
    checks.equal("no lockup, stall, clock switched or I/O error", bad_lines(log), [])
    known = [*accepted(), *more_known]
    checks.equal("no other warning", [line for line in warnings(log) if line not in known], [])
    _, clock = guest.shell("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    checks.equal("the clock is still KVM's", clock.strip(), "kvm-clock")
    guest.type("poweroff -f\n")
    checks.equal("power-off ends `run` with 0", guest.end(300).status, 0)
    checked = lab.run(f"e2fsck -fn {image}")
    checks.that("the file system is clean", checked.status == 0, checked.output)
