# SPDX-License-Identifier: Apache-2.0
"""The boot logs of a kernel under our VMM and under QEMU's microvm: prints what only one of them has."""

import re

from guest import Machine, Microvm, Ours
from outer import say
from warnings_of_kernels import plain


def run(lab, options, checks):
    machine = Machine((options.cpus or [2])[0], (options.kernel or ["cloud"])[0])
    logs = []
    for kind in (Ours, Microvm):
        guest = kind.linux(lab, options, machine)
        guest.up()
        logs.append(lines_of(guest.shell("dmesg")[1]))
        guest.type("poweroff -f\n")
        guest.end()
    ours, theirs = logs
    for title, one, other in (("only here", ours, theirs), ("only under microvm", theirs, ours)):
        say(f"\n{title}:\n")
        for key, line in one.items():
            if key not in other:
                say("  " + line)
    checks.that("both logs were had", ours and theirs)


def lines_of(log):
    """Each line without its time, by what it is without numbers."""
    found = {}
    for line in log.splitlines():
        text = re.sub(r"^\[ *\d+\.\d+\] ?", "", line).strip()
        if text:
            found.setdefault(plain(text), text)
    return found
