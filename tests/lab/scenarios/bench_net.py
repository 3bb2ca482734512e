# SPDX-License-Identifier: Apache-2.0
"""Network throughput and latency against QEMU's microvm: the same guest and peer, one after the other, in rounds."""

import re
import statistics

from far_network import FAR, NEAR, FarNetwork, configure, programs, said_by
from guest import Machine, Microvm, Ours
from outer import say

MEGABYTES = {"quick": 16, "full": 64, "long": 512}
ROUNDS = {"quick": 1, "full": 5, "long": 15}
PINGS = 300
LIMIT_S = 500


def run(lab, options, checks):
    cpus = (options.cpus or [1])[0]
    sides = []
    for number, (name, kind) in enumerate((("stopvisor", Ours), ("QEMU microvm", Microvm))):
        far = FarNetwork(lab, f"tap{number}", f"far{number}")
        machine = Machine(cpus, nets=[(far.tap, f"02:00:00:00:00:0{number + 2}")], programs=programs(options))
        guest = kind.linux(lab, options, machine, f"guest{number}", number)
        guest.up(300)
        far.take()
        checks.that(f"{name}: a network", configure(guest))
        sides.append((name, far, guest, {}))
    # In turns: what else the host does meets both.
    for _ in range(ROUNDS[options.mode]):
        for _, far, guest, found in sides:
            for what, value in measured(far, guest, MEGABYTES[options.mode]):
                found.setdefault(what, []).append(value)
    say(f"\n{cpus} vCPUs, {ROUNDS[options.mode]} rounds of {MEGABYTES[options.mode]} MiB and {PINGS} pings, median (least, "
        "most):\n")
    say("| | " + " | ".join(name for name, *_ in sides) + " |\n|---|" + "---|" * len(sides))
    for what in sides[0][3]:
        cells = [f"{statistics.median(found[what]):,.0f} ({min(found[what]):,.0f}, {max(found[what]):,.0f})"
                 for *_, found in sides]
        say(f"| {what} | " + " | ".join(cells) + " |")
    checks.that("each was measured", all(len(found) == 3 for *_, found in sides))
    for *_, guest, _ in sides:
        guest.type("poweroff -f\n")
        guest.end(120)


def measured(far, guest, megabytes):
    """(what, value) of each kind."""
    total = megabytes << 20
    sink = far.peer("sink", 5003)
    guest.shell(f"until net_stream source {FAR} 5003 {total} 2>/dev/null; do sleep 1; done", LIMIT_S)
    yield "guest to host, MiB/s", megabytes / seconds_of(said_by(sink, LIMIT_S), "took", total)
    source = far.peer("source", NEAR, 5004, total)
    guest.shell("net_stream sink 5004", LIMIT_S)
    yield "host to guest, MiB/s", megabytes / seconds_of(said_by(source, LIMIT_S), "gave", total)
    said = said_by(far.peer("ping", NEAR, PINGS), LIMIT_S)
    yield "ping there and back, us", float(said.split()[-1]) * 1e6


def seconds_of(said, verb, total):
    found = re.fullmatch(rf"{verb} {total} ([0-9.]+)", said)
    if not found:
        raise ValueError(said)
    return float(found[1])
