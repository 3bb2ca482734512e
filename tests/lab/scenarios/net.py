# SPDX-License-Identifier: Apache-2.0
"""The network device: 256 MiB there and back over a tap, and pings, come out whole under a storm of stops."""

import json
import os

from far_network import NEAR, FarNetwork, configure, programs, said_by
from guest import Machine, Ours
from warnings_of_kernels import bad_lines

MEGABYTES = {"quick": 16, "full": 64, "long": 1024}
PINGS = 500
LIMIT_S = 900
MAC = "02:00:00:00:00:02"
MANY = 1_000_000  # stops, more than come in the time
# What Linux takes, by virtio's numbers: CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, MAC, HOST_TSO4, HOST_TSO6, MRG_RXBUF,
# STATUS.
TAKEN = (0, 1, 7, 8, 5, 11, 12, 15, 16)


def run(lab, options, checks):
    far = FarNetwork(lab)
    guest = Ours.linux(lab, options, Machine(
        (options.cpus or [2])[0], nets=[(far.tap, MAC)], programs=programs(options)))
    guest.up(300)
    far.take()
    checks.that("the guest has a network device", configure(guest))
    checks.equal("its address is the one that was given", guest.shell("cat /sys/class/net/eth0/address")[1].strip(), MAC)
    bits = guest.shell("cat /sys/class/net/eth0/device/features")[1].strip()
    checks.equal("checksums and segmentation are left to the device, and to the driver",
                 [bit for bit in TAKEN if bits[bit:bit + 1] != "1"], [])
    transfer(far, guest, options, checks)
    ping_pong(far, guest, options, checks)
    errors = guest.shell("cat /sys/class/net/eth0/statistics/*_errors")[1].split()
    checks.equal("the guest counts no error", [word for word in errors if word != "0"], [])
    vanish(lab, far, guest, checks)
    checks.equal("no lockup, stall or clock switched", bad_lines(guest.shell("dmesg -r")[1]), [])
    guest.type("poweroff -f\n")
    checks.equal("the guest powers off", guest.end().status, 0)


def storm(lab, options):
    return lab.start([os.path.join(options.programs, "lab_storm"), "guest", MANY, options.seed, 0, 0])


def stops_of(lab, job):
    """Ends a storm. Returns how many stops it had; 0 where one failed."""
    lab.run("killall -TERM lab_storm")
    done = job.wait(200)
    return json.loads(done.output.strip().splitlines()[-1])["stops"] if done.status == 0 else 0


def transfer(far, guest, options, checks):
    stops = storm(far.lab, options)
    megabytes = MEGABYTES[options.mode]
    before = far.counts()
    echo = far.peer("echo", NEAR, 5001, megabytes << 20, options.seed)
    guest.shell("net_stream echo 5001", LIMIT_S)
    said = said_by(echo, LIMIT_S)
    count = stops_of(far.lab, stops)
    checks.equal(f"{megabytes} MiB come back as they were sent, under {count} stops", said, f"same {megabytes << 20}")
    checks.that("there were stops", count > 0)
    for direction, (bytes_before, frames_before), (bytes_after, frames_after) in zip(
            ("sends", "is sent"), before, far.counts()):
        size = (bytes_after - bytes_before) / max(1, frames_after - frames_before)
        checks.that(f"the guest {direction} frames larger than the network's: {size:.0f} bytes on average", size > 1514)


def ping_pong(far, guest, options, checks):
    stops = storm(far.lab, options)
    said = said_by(far.peer("ping", NEAR, PINGS), LIMIT_S)
    count = stops_of(far.lab, stops)
    checks.that(f"under {count} stops no ping is lost or doubled: {said}",
                count and said.startswith(f"answered {PINGS} lost 0 doubled 0 "))


def vanish(lab, far, guest, checks):
    lab.must(far.inside(f"ip link del {far.tap}"))
    guest.shell(f"ping -c 1 -W 1 {NEAR.rpartition('.')[0]}.1")
    # The frame is looked at by a thread of the device's own: nobody tells when.
    guest.shell("n=0; while [ $(cat /sys/class/net/eth0/carrier) != 0 ] && [ $n -lt 600 ]; do n=$((n + 1)); sleep 0.1; done")
    checks.equal("without its tap the guest sees no carrier", guest.shell("cat /sys/class/net/eth0/carrier")[1].strip(), "0")
    status = guest.command("status", "--json")
    devices = json.loads(status.output).get("devices", []) if status.status == 0 else []
    checks.that("and status says why", any(device.get("trouble") == "the tap is gone" for device in devices),
                status.output)
