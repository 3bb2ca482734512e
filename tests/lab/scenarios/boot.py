# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels boot with 1, 2 and 4 vCPUs, as bzImage and as ELF vmlinux, to a shell, without new warnings.

Each of them in each way with STOPVISOR_TEST_MODE=long; otherwise each kernel, each number and each way once."""

import json

from guest import Machine, Ours
from warnings_of_kernels import accepted, bad_lines, warnings

MACHINES = {
    "quick": [Machine(2, "cloud")],
    "full": [Machine(1, "cloud"), Machine(4, "cloud"), Machine(2, "cloud", elf=True), Machine(2, "amd64")],
    "long": [Machine(cpus, flavour, elf=elf)
             for flavour in ("cloud", "amd64") for elf in (False, True) for cpus in (1, 2, 4)],
}


def run(lab, options, checks):
    machines = MACHINES[options.mode]
    if options.kernel or options.cpus:
        machines = [Machine(cpus, flavour, elf=elf) for flavour in options.kernel or ["cloud", "amd64"]
                    for elf in (False, True) for cpus in options.cpus or [1, 2, 4]]
    for machine in machines:
        checks.prefix = f"{machine.flavour}, {'vmlinux, ' if machine.elf else ''}{machine.cpus} vCPUs: "
        boots(lab, options, checks, machine)


def boots(lab, options, checks, machine):
    guest = Ours.linux(lab, options, machine)
    said = guest.up()
    checks.equal("all vCPUs are online", said.get("cpus"), str(machine.cpus))
    checks.equal("its clock is KVM's", said.get("clock"), "kvm-clock")
    _, log = guest.shell("dmesg -r")
    known = accepted()
    checks.equal("no warning that QEMU does not bring", [line for line in warnings(log) if line not in known], [])
    checks.equal("nothing that is always bad", bad_lines(log), [])
    if machine.elf:
        kernel = json.loads(guest.must("guest", "--json"))["kernel"]
        checks.equal("PVH starts the kernel where it was linked to", kernel["slide"], 0)
    guest.type("poweroff -f\n")
    checks.equal("poweroff ends `run` with 0", guest.end().status, 0)
