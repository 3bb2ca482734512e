#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Figures of live migration, ours and QEMU's, of the same guest on the same host, in one run.

    tests/stress/migrate_figures.py BUILD [--rounds N] [--qemu-rounds N] [--sizes MIB,...] [--downtime MS]

BUILD has the command (`ninja -C BUILD tools/stopvisor/stopvisor`). The guest has 1 GiB and rewrites 900 MiB of it in a
loop; both sides may hold it for the same time, and slow it until that can be kept (QEMU: auto-converge). Then the same
from 256 MiB to 4 GiB, nine tenths of which are rewritten, and what one link carries of a guest that is still, beside
what socat carries over such a socket.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import tempfile
import time


def percentile(values, percent):
    """The value that `percent` of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1))]


def told(name, figures, unit="ms"):
    print("%s: p50 %.2f, p99 %.2f, least %.2f, most %.2f %s (%d)" %
          (name, percentile(figures, 50), percentile(figures, 99), min(figures), max(figures), unit, len(figures)), flush=True)


class Ours:
    """A guest of ours that goes from process to process."""

    def __init__(self, command, folder, mib, dirty_mib):
        self.command, self.folder, self.number = command, folder, 0
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": folder}
        cmdline = f"scenarios=dirty dirty_mib={dirty_mib}" if dirty_mib else "scenarios=idle"
        self.say("run", "--name", "vm0", "--memory", f"{mib}M", "--cmdline", cmdline, "--detach")

    def say(self, *words):
        return subprocess.run([self.command, *words], env=self.environment, stdin=subprocess.DEVNULL, check=True,
                              capture_output=True, text=True).stdout

    def written(self):
        """Pages that vCPU 0 has written: guest/probe_abi.h, CpuResults::dirty_pages."""
        answer = json.loads(self.say("peek", f"vm{self.number}", f"gpa:{0x200000 + 192 + 480:#x}", "8", "--json"))
        return int.from_bytes(bytes.fromhex(answer["bytes"]), "little")

    def migrate(self, *options):
        there = self.number + 1
        place = os.path.join(self.folder, f"in{there}")
        self.say("run", "--name", f"vm{there}", "--incoming", f"unix:{place}", "--detach")
        result = json.loads(self.say("migrate", f"vm{self.number}", f"unix:{place}", "--json", *options))
        self.number = there
        return result

    def end(self):
        self.say("shutdown", f"vm{self.number}", "--now")


class Qemu:
    """The same guest under QEMU, which goes from process to process too."""

    def __init__(self, elf, folder, mib, dirty_mib):
        self.elf, self.folder, self.mib, self.dirty_mib, self.number = elf, folder, mib, dirty_mib, 0
        self.child, self.monitor = self.start([])

    def start(self, more):
        path = os.path.join(self.folder, f"qmp{self.number}")
        child = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "kvm", "-M", "microvm", "-cpu", "host,-arch-capabilities", "-m", str(self.mib),
             "-kernel", self.elf, "-append", f"scenarios=dirty dirty_mib={self.dirty_mib}", "-nodefaults", "-display", "none",
             "-no-reboot", "-qmp", f"unix:{path},server=on,wait=off", *more], stdin=subprocess.DEVNULL)
        for _ in range(1000):
            try:
                stream = socket.socket(socket.AF_UNIX)
                stream.connect(path)
                break
            except OSError:
                time.sleep(0.01)  # it has no other way to say that it listens
        lines = stream.makefile("rw")
        lines.readline()
        self.ask("qmp_capabilities", lines)
        return child, lines

    @staticmethod
    def ask(command, lines, **arguments):
        lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        lines.flush()
        while True:
            answer = json.loads(lines.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def migrate(self, downtime_ms, patience_s):
        self.number += 1
        place = os.path.join(self.folder, f"q{self.number}")
        child, monitor = self.start(["-incoming", f"unix:{place}"])
        self.ask("migrate-set-capabilities", self.monitor, capabilities=[{"capability": "auto-converge", "state": True}])
        self.ask("migrate-set-parameters", self.monitor, **{"max-bandwidth": 1 << 40, "downtime-limit": downtime_ms})
        begin = time.monotonic()
        self.ask("migrate", self.monitor, uri=f"unix:{place}")
        while True:
            state = self.ask("query-migrate", self.monitor)
            if state["status"] in ("completed", "failed", "cancelled"):
                break
            if time.monotonic() - begin > patience_s:
                child.kill()
                child.wait()
                return None
            time.sleep(0.02)
        if state["status"] != "completed":
            raise RuntimeError(f"QEMU: {state}")
        self.child.kill()
        self.child.wait()
        self.child, self.monitor = child, monitor
        return {"downtime_ms": state["downtime"], "total_ms": state["total-time"]}

    def end(self):
        self.child.kill()
        self.child.wait()


def socat_speed(folder, mib):
    """MiB/s of that many zeros from one process to another over a Unix socket."""
    place = os.path.join(folder, "socat")
    sink = subprocess.Popen(["socat", "-u", "-b", "1048576", f"UNIX-LISTEN:{place}", "OPEN:/dev/null,wronly"])
    while not os.path.exists(place):
        time.sleep(0.01)
    begin = time.monotonic()
    with open("/dev/zero", "rb") as zeros:
        head = subprocess.Popen(["head", "-c", f"{mib}M"], stdin=zeros, stdout=subprocess.PIPE)
        subprocess.run(["socat", "-u", "-b", "1048576", "STDIN", f"UNIX-CONNECT:{place}"], stdin=head.stdout, check=True)
        head.wait()
    sink.wait()
    return mib / (time.monotonic() - begin)


def ours(arguments, command, folder, mib, rounds):
    guest = Ours(command, folder, mib, mib * 9 // 10)
    try:
        while guest.written() < 2 * (mib * 9 // 10) * 256:
            time.sleep(0.05)
        results = []
        for _ in range(rounds):
            results.append(guest.migrate("--max-downtime", f"{arguments.downtime}ms", "--timeout", "120s"))
        return results
    finally:
        guest.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--qemu-rounds", type=int, default=20)
    parser.add_argument("--qemu-patience", type=int, default=120, metavar="S", help="for one migration of QEMU's")
    parser.add_argument("--sizes", default="256,512,1024,2048,4096")
    parser.add_argument("--size-rounds", type=int, default=5)
    parser.add_argument("--downtime", type=int, default=50, metavar="MS")
    arguments = parser.parse_args()
    command = os.path.join(os.path.abspath(arguments.build), "tools/stopvisor/stopvisor")
    elf = os.path.join(os.path.abspath(arguments.build), "guest/probe.elf")
    print(f"{time.strftime('%F %T')}, Linux {platform.release()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, "
          f"the guest may be held for {arguments.downtime} ms", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = ours(arguments, command, folder, 1024, arguments.rounds)
        told("1 GiB, 900 MiB being rewritten: downtime", [r["downtime_us"] / 1e3 for r in results])
        told("  until the destination was ready", [r["ready_us"] / 1e3 for r in results])
        told("  total", [r["total_us"] / 1e3 for r in results])
        told("  slowed by stops, altogether", [r["slowed_us"] / 1e3 for r in results])
        if shutil.which("qemu-system-x86_64") is None:
            print("QEMU is not installed: not compared")
        else:
            qemu = Qemu(elf, folder, 1024, 1024 * 9 // 10)
            try:
                time.sleep(3)  # as long as the guest takes to have touched its memory
                theirs = [qemu.migrate(arguments.downtime, arguments.qemu_patience) for _ in range(arguments.qemu_rounds)]
            finally:
                qemu.end()
            done = [r for r in theirs if r is not None]
            print(f"QEMU, auto-converge: {len(theirs) - len(done)} of {len(theirs)} did not end within "
                  f"{arguments.qemu_patience} s", flush=True)
            if done:
                told("QEMU: downtime", [r["downtime_ms"] for r in done])
                told("QEMU: total", [r["total_ms"] for r in done])
        for mib in map(int, filter(None, arguments.sizes.split(","))):
            results = ours(arguments, command, folder, mib, arguments.size_rounds)
            told(f"{mib} MiB: downtime", [r["downtime_us"] / 1e3 for r in results])
            told(f"{mib} MiB: total", [r["total_us"] / 1e3 for r in results])
        if shutil.which("socat") is None:
            print("socat is not installed: throughput not compared")
            return
        # In turn, so that both have the same host. The first round is all of a guest's memory that is not zero.
        guest = Ours(command, folder, 1024, 900)
        try:
            while guest.written() < 2 * 900 * 256:
                time.sleep(0.05)
            guest.say("pause", "vm0")
            speeds = []
            for _ in range(max(3, arguments.size_rounds)):
                first = guest.migrate()["rounds"][0]
                speeds.append((900 / (first["us"] / 1e6), socat_speed(folder, 900)))
        finally:
            guest.end()
        mine, theirs = (statistics.median(column) for column in zip(*speeds))
        print(f"900 MiB over one Unix socket, medians: {mine:.0f} MiB/s, socat {theirs:.0f} MiB/s: {mine / theirs:.2f} of it")


if __name__ == "__main__":
    main()
