# SPDX-License-Identifier: Apache-2.0
"""Huge pages of 2 MiB for as long as the tests run, where this host lets us have some.

Whoever wants them starts a keeper, which adds them to the host's pool and takes them out again when its stdin ends:
also where we are killed. What others do with the pool meanwhile stays: it adds and takes what it added, no more, and
several at once, of several runs, do not disturb each other. As a program, `huge_pages.py COUNT` is the keeper.
"""

import fcntl
import os
import signal
import subprocess
import sys

POOL = "/proc/sys/vm/nr_hugepages"
LOCK = "/run/stopvisor-huge-pages.lock"
PAGE_KIB = 2048
ROOM = 8  # times as much memory must be free: a pool is nobody else's


def number_in(path, name=None):
    """The number in a file, or in its line that begins with `name`."""
    with open(path, encoding="ascii") as file:
        for line in file:
            if name is None or line.startswith(name):
                return int(line.removeprefix(name or "").split()[0])
    raise ValueError(f"{path}: no {name}")


def change_pool(by):
    """Makes the pool larger or smaller. Returns by how much it did become so."""
    with open(LOCK, "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = number_in(POOL)
        with open(POOL, "w", encoding="ascii") as pool:
            pool.write(str(max(0, before + by)))
        return number_in(POOL) - before


def keep(count):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # our end is that of stdin
    added = 0
    try:
        if number_in("/proc/meminfo", "Hugepagesize:") != PAGE_KIB:
            raise ValueError("this host's huge pages are of another size")
        if number_in("/proc/meminfo", "MemAvailable:") < ROOM * count * PAGE_KIB:
            raise ValueError("too little memory is free")
        added = change_pool(count)
        if added < count:
            raise ValueError(f"the host could make {added} only")
        print("ok", flush=True)
    except (OSError, ValueError) as why:
        print(why, flush=True)
    sys.stdin.read()
    if added > 0:
        change_pool(-added)


class HugePages:
    """A pool that is at least `count` pages larger, from here to end()."""

    def __init__(self, count):
        self.keeper = subprocess.Popen([sys.executable, os.path.abspath(__file__), str(count)], text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.pid = self.keeper.pid
        answer = self.keeper.stdout.readline().strip()
        self.missing = "" if answer == "ok" else answer or "its keeper died"  # why there are not so many

    def end(self):
        if self.keeper.returncode is None:
            self.keeper.communicate()


if __name__ == "__main__":
    keep(int(sys.argv[1]))
