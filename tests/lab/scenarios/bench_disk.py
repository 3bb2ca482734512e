# SPDX-License-Identifier: Apache-2.0
"""Disk throughput against QEMU's microvm: the same guest and an image each, one after the other, in rounds."""

import statistics

from guest import Machine, Microvm, Ours
from outer import say

ROUNDS = {"quick": 1, "full": 5, "long": 15}
SEQUENTIAL_MB = {"quick": 16, "full": 128, "long": 256}
RANDOM_MB = {"quick": 1, "full": 8, "long": 16}
IMAGE_MB = 256
LIMIT_S = 300
# (what, fio's kind, bytes of a request, requests at once)
KINDS = [
    ("read in sequence, 1 MiB, MiB/s", "read", 1 << 20, 4),
    ("write in sequence, 1 MiB, MiB/s", "write", 1 << 20, 4),
    ("read at random, 4 KiB, one by one, requests/s", "randread", 4096, 1),
    ("write at random, 4 KiB, one by one, requests/s", "randwrite", 4096, 1),
    ("read at random, 4 KiB, 16 at once, requests/s", "randread", 4096, 16),
    ("write at random, 4 KiB, 16 at once, requests/s", "randwrite", 4096, 16),
]
FIO = ("fio --name=bench --filename=/dev/vdb --direct=1 --ioengine=libaio --rw={rw} --bs={size} --iodepth={depth} "
       "--size={mb}M --randrepeat=1 --output-format=terse --terse-version=3")
# Of fio's terse line, version 3: (KiB/s, requests/s) of its reads, and of its writes.
READ_AT, WRITE_AT = (6, 7), (47, 48)


def run(lab, options, checks):
    cpus = (options.cpus or [1])[0]
    sides = []
    for number, (name, kind) in enumerate((("stopvisor", Ours), ("QEMU microvm", Microvm))):
        image = f"/tmp/bench{number}.img"
        lab.must(f"head -c {IMAGE_MB}M /dev/urandom >{image}", LIMIT_S)  # no holes: the host has it all
        machine = Machine(cpus, cmdline="lab.programs", disks=[options.images.programs() + ",ro", image])
        guest = kind.linux(lab, options, machine, f"guest{number}", number)
        guest.up(300)
        sides.append((name, guest, {}))
    # In turns: what else the host does meets both. The first is not counted: it reads fio from its disk.
    for round_number in range(ROUNDS[options.mode] + 1):
        for _, guest, found in sides:
            for kind in KINDS:
                value = measured(guest, kind, options.mode)
                if round_number:
                    found.setdefault(kind[0], []).append(value)
    say(f"\n{cpus} vCPUs, {ROUNDS[options.mode]} rounds of {SEQUENTIAL_MB[options.mode]} MiB in sequence and "
        f"{RANDOM_MB[options.mode]} MiB at random each, O_DIRECT in the guest, images in the outer machine's memory, "
        "median (least, most):\n")
    say("| | " + " | ".join(name for name, *_ in sides) + " |\n|---|" + "---|" * len(sides))
    for what, *_ in KINDS:
        cells = [f"{statistics.median(found[what]):,.0f} ({min(found[what]):,.0f}, {max(found[what]):,.0f})"
                 for *_, found in sides]
        say(f"| {what} | " + " | ".join(cells) + " |")
    checks.that("each was measured", all(min(map(min, found.values())) > 0 for *_, found in sides))
    for _, guest, _ in sides:
        guest.type("poweroff -f\n")
        guest.end(120)


def measured(guest, kind, mode):
    """MiB/s of requests in sequence, requests/s of others."""
    _, rw, size, depth = kind
    sequential = not rw.startswith("rand")
    megabytes = (SEQUENTIAL_MB if sequential else RANDOM_MB)[mode]
    status, said = guest.shell(FIO.format(rw=rw, size=size, depth=depth, mb=megabytes), LIMIT_S)
    lines = [line for line in said.splitlines() if line.startswith("3;")]
    if status != 0 or not lines:
        raise ValueError(f"fio: exit status {status}: {said[-500:]}")
    kib, requests = (READ_AT if rw.endswith("read") else WRITE_AT)
    words = lines[0].split(";")
    return float(words[kib]) / 1024 if sequential else float(words[requests])
