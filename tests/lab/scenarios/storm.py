# SPDX-License-Identifier: Apache-2.0
"""A guest under load is stopped again and again, from power-on to power-off, and does not notice."""

import json
import os

from guest import Machine, Ours
from load import Load
from warnings_of_kernels import accepted, bad_lines, warnings

STOPS = {"quick": 60, "full": 150, "long": 1000}
LONG_HOLDS = {"quick": (0, 0), "full": (1, 30_000), "long": (2, 30_000)}
WATCHDOG_S = 5  # a lockup is told after twice that: well within a long hold
TO_THE_END = 1_000_000  # stops, more than come before the guest has ended


def run(lab, options, checks):
    stops = options.stops or STOPS[options.mode]
    long_holds, long_ms = LONG_HOLDS[options.mode]
    cpus = (options.cpus or [2])[0]
    checks.prefix = f"{cpus} vCPUs, seed {options.seed}: "
    lab.must("truncate -s 64M /tmp/raw.img; truncate -s 128M /tmp/data.img; mkfs.ext4 -q /tmp/data.img")
    machine = Machine(
        cpus, (options.kernel or ["cloud"])[0], 768, f"lab.programs watchdog_thresh={WATCHDOG_S}",
        disks=[options.images.programs() + ",ro", "/tmp/raw.img", "/tmp/data.img"],
        programs=[("bin/clock_check", os.path.join(options.programs, "lab_clock"))])
    first = storm(lab, options, stops, options.seed, long_holds, long_ms)
    guest = Ours.linux(lab, options, machine)
    guest.up(300)
    load = Load(guest, checks)
    load.start()
    while load.one_pass(8, 600) and not first.ended():
        pass
    tally = judged(first, checks, "from power-on", stops)
    checks.that("some were long", tally["held_long"] == long_holds, tally)
    last = storm(lab, options, TO_THE_END, options.seed + 1, 0, 0)
    load.one_pass(4, 600)
    load.finish()
    looks_healthy(guest, checks)
    guest.type("sync; poweroff -f\n")
    checks.equal("power-off amid stops ends `run` with 0", guest.end(300).status, 0)
    judged(last, checks, "to power-off", 1)
    checked = lab.run("e2fsck -fn /tmp/data.img")
    checks.that("the file system is clean", checked.status == 0, checked.output)


def storm(lab, options, stops, seed, long_holds, long_ms):
    program = os.path.join(options.programs, "lab_storm")
    return lab.start([program, "guest", stops, seed, long_holds, long_ms])


def judged(job, checks, when, least):
    """Waits for a storm to end, and checks what it says of itself."""
    done = job.wait(600)
    tally = json.loads(done.output.strip().splitlines()[-1]) if done.output.strip() else {"stops": 0}
    checks.that(f"stops {when}: {tally['stops']}, slowest {tally.get('slowest_ms')} ms",
                done.status == 0 and tally["stops"] >= least, done.output)
    return tally


def looks_healthy(guest, checks):
    _, log = guest.shell("dmesg -r")
    checks.equal("no lockup, stall, clock switched or I/O error", bad_lines(log), [])
    known = accepted()
    checks.equal("no other warning", [line for line in warnings(log) if line not in known], [])
    _, clock = guest.shell("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    checks.equal("the clock is still KVM's", clock.strip(), "kvm-clock")
