# SPDX-License-Identifier: Apache-2.0
"""The same kernels under QEMU's microvm: what they warn of there. Writes tests/lab/microvm-warnings.txt anew."""

import os

from guest import Machine, Microvm
from warnings_of_kernels import HERE, bad_lines, warnings

HEADER = """# What Debian's kernels warn of under QEMU's microvm in the lab, numbers as N: tests/lab/run microvm writes it.
"""


def run(lab, options, checks):
    found = []
    for flavour in options.kernel or ["cloud", "amd64"]:
        for cpus in options.cpus or [1, 2, 4]:
            checks.prefix = f"{flavour}, {cpus} vCPUs: "
            peer = Microvm.linux(lab, options, Machine(cpus, flavour))
            checks.equal("the number of vCPUs", peer.up().get("cpus"), str(cpus))
            _, log = peer.shell("dmesg -r")
            found += [line for line in warnings(log) if line not in found]
            checks.equal("nothing that is always bad", bad_lines(log), [])
            peer.type("poweroff -f\n")
            peer.end()
    with open(os.path.join(HERE, "microvm-warnings.txt"), "w", encoding="utf-8") as out:
        out.write(HEADER + "".join(line + "\n" for line in found))
