#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Figures of snapshots, ours and QEMU's, of the same guest on the same file system, and of restores, in one run.

    tests/stress/snapshot_figures.py BUILD DIRECTORY [ROUNDS [MIB]]

BUILD has the programs (`ninja -C BUILD tests/stress/snapshot_figures tests/stress/restore_figures`); DIRECTORY is on the
file system to measure.
"""

import json
import math
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

MEMORY_MIB, DIRTY_MIB = 1024, 900
# From guest/probe_abi.h: CpuResults::dirty_pages of vCPU 0.
DIRTY_PAGES_GPA = 0x200000 + 192 + 480


class Qemu:
    """The probe guest under QEMU, and its monitor."""

    def __init__(self, elf, folder):
        path = os.path.join(folder, "qmp")
        self.child = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "kvm", "-M", "microvm", "-cpu", "host,-arch-capabilities", "-m", str(MEMORY_MIB),
             "-kernel", elf, "-append", f"scenarios=dirty dirty_mib={DIRTY_MIB}", "-nodefaults", "-display", "none", "-no-reboot",
             "-qmp", f"unix:{path},server=on,wait=off"], stdin=subprocess.DEVNULL)
        self.events = []
        for _ in range(1000):
            try:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.01)  # it has no other way to say that it listens
        self.lines = self.socket.makefile("rw")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def written(self):
        text = self.ask("human-monitor-command", **{"command-line": f"xp /1gx {DIRTY_PAGES_GPA:#x}"})
        return int(text.split(":")[1], 16)

    def rate(self):
        before, begin = self.written(), time.monotonic()
        time.sleep(0.5)
        return (self.written() - before) / (time.monotonic() - begin)

    def background_snapshot(self, file):
        """Returns how long it took and for how long the guest was stopped, in ms, and how fast it was meanwhile."""
        free, before, begin = self.rate(), self.written(), time.monotonic()
        self.events.clear()
        # It does not sync by itself; ours does.
        self.ask("migrate", uri=f"exec:dd of={file} bs=1M iflag=fullblock conv=fsync status=none")
        while True:
            state = self.ask("query-migrate")
            if state["status"] in ("completed", "failed", "cancelled"):
                break
            time.sleep(0.02)
        total = time.monotonic() - begin
        rate = (self.written() - before) / total
        os.remove(file)
        if state["status"] != "completed":
            raise RuntimeError(f"QEMU: {state}")
        stamp = {event["event"]: event["timestamp"]["seconds"] * 1e3 + event["timestamp"]["microseconds"] / 1e3
                 for event in self.events}
        stopped = stamp["RESUME"] - stamp["STOP"] if {"RESUME", "STOP"} <= stamp.keys() else state.get("downtime", math.nan)
        return total * 1e3, stopped, rate / free

    def end(self):
        self.child.kill()
        self.child.wait()


def main():
    build, directory = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    print(f"{time.strftime('%F %T')}, Linux {platform.release()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
          flush=True)
    subprocess.run([os.path.join(build, "tests/stress/snapshot_figures"), directory, str(rounds), *sys.argv[4:]], check=True)
    subprocess.run([os.path.join(build, "tests/stress/restore_figures"), directory, str(6 * rounds), *sys.argv[4:]], check=True)
    if shutil.which("qemu-system-x86_64") is None:
        print("QEMU is not installed: not compared")
        return
    with tempfile.TemporaryDirectory() as folder:
        qemu = Qemu(os.path.join(build, "guest/probe.elf"), folder)
        try:
            qemu.ask("migrate-set-capabilities", capabilities=[{"capability": "background-snapshot", "state": True}])
            qemu.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            while qemu.written() < 2 * DIRTY_MIB * 256:
                time.sleep(0.05)
            figures = []
            for _ in range(rounds):
                figures.append(qemu.background_snapshot(os.path.join(directory, "qemu")))
                print("QEMU background snapshot, %d MiB, %d MiB being rewritten: %.0f ms, guest stopped for %.1f ms, "
                      "its speed meanwhile %.2f" % (MEMORY_MIB, DIRTY_MIB, *figures[-1]), flush=True)
            print("QEMU, medians: %.0f ms, stopped for %.1f ms, speed %.2f" %
                  tuple(statistics.median(column) for column in zip(*figures)))
        finally:
            qemu.end()


if __name__ == "__main__":
    main()
