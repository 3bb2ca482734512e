# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels boot with 1, 2 and 4 vCPUs, as bzImage and as ELF vmlinux, to a shell, without new warnings."""

import json

from guest import Machine, Ours
from warnings_of_kernels import accepted, bad_lines, warnings


def run(lab, options, checks):
    quick = options.mode == "quick"
    flavours = options.kernel or (["cloud"] if quick else ["cloud", "amd64"])
    for flavour in flavours:
        for cpus in options.cpus or ([2] if quick else [1, 2, 4]):
            checks.prefix = f"{flavour}, {cpus} vCPUs: "
            boots(lab, options, checks, Machine(cpus, flavour))
        if not quick:
            for cpus in options.cpus or [2]:
                checks.prefix = f"{flavour}, vmlinux, {cpus} vCPUs: "
                boots(lab, options, checks, Machine(cpus, flavour, elf=True))


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
