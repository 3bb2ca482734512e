# SPDX-License-Identifier: Apache-2.0
"""What a kernel's log warns of, in a form that two boots can be compared in."""

import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))
WARNING = 4  # KERN_WARNING
ALWAYS_BAD = re.compile(r"soft lockup|hard LOCKUP|rcu.*(stall|INFO)|clocksource.*(unstable|[Ss]kewed)|hung_task|"
                        r"Switched to clocksource (?!kvm-clock|refined-jiffies|tsc-early)|time jumped|stuck for|"
                        r"blocked for more than|I/O error|BUG:|WARNING:|Oops|EXT4-fs (error|warning)|"
                        r"NETDEV WATCHDOG")


def warnings(raw_log):
    """`raw_log`: what `dmesg -r` printed. Returns the lines of level WARNING and worse, without times and numbers."""
    found = []
    for line in raw_log.splitlines():
        parts = re.match(r"<(\d+)>\[ *\d+\.\d+\] ?(.*)", line)
        if parts and int(parts[1]) & 7 <= WARNING:
            text = plain(parts[2])
            if text and text not in found:
                found.append(text)
    return found


def plain(text):
    text = re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b", "X", text)
    return re.sub(r"\d+", "N", text).strip()


def bad_lines(raw_log):
    """The lines that no boot and no storm may bring."""
    return [line for line in raw_log.splitlines() if ALWAYS_BAD.search(line)]


def accepted():
    """Warnings that are no fault of ours: those QEMU's microvm brings as well, and those with a reason."""
    lines = []
    for name in ["microvm-warnings.txt", "accepted-warnings.txt"]:
        with open(os.path.join(HERE, name), encoding="utf-8") as file:
            lines += [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]
    return lines
