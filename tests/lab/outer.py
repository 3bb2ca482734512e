# SPDX-License-Identifier: Apache-2.0
"""The outer machine: Debian's kernel under QEMU's software CPU, which emulates AMD SVM, so that it has a /dev/kvm
whatever the host has. It sees the host's files read-only at their own paths, with a layer of memory over them; what
it writes to `work` reaches the host. Commands run in it as root."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys

from console import END_MARK, Console, Missed
from skip import Unavailable

QEMU = "qemu-system-x86_64"
ANSWER = r"^(\d+) (\d+)\n"  # of the agent: which command, its exit status
KEEP_KVM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "keep_kvm.py")
TRIPLE_FAULT = "triple fault (KVM_EXIT_SHUTDOWN)"
TRACING = "/sys/kernel/tracing"
STALE_BREAKPOINT = re.compile(r"\bint3: 0000 \[#\d+\].*")
BROKEN_KERNEL = r"stack guard page was hit|corrupted stack end detected|__svm_vcpu_run\+0x"
UP_LIMIT_S = 300  # it is up in 5 to 10 s on an idle host; a busy one is no reason to fail


class Result:
    """What a command that ran in the outer machine left."""

    def __init__(self, command, status, output):
        self.command, self.status, self.output = command, status, output


class Job:
    """A command that runs in the outer machine."""

    def __init__(self, machine, number, command):
        self.machine, self.number, self.command = machine, number, command
        self.result = None

    def wait(self, limit_s):
        """Returns its Result. Raises Missed where it has not ended within the limit."""
        if self.result is None:
            status = self.machine.answer(self.number, limit_s, self.command)
            self.result = Result(self.command, status, self.output())
        return self.result

    def ended(self):
        """Whether it has ended by now."""
        self.machine.hear()
        return self.machine.knows(self.number)

    def output(self):
        """What it has printed so far."""
        path = os.path.join(self.machine.work, f"{self.number}.out")
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:  # it is about to start
            return ""


class OuterMachine:
    """CONTEXT: one thread. Use it with `with`: leaving it powers the machine off."""

    PORTS = 4  # serial ports for the consoles of guests

    def __init__(self, images, work, cpus=2, memory_mb=6144, show=False, drives=()):
        if shutil.which(QEMU) is None:
            raise Unavailable(f"the lab needs {QEMU} (Debian: qemu-system-x86), which this host does not have")
        self.work = os.path.realpath(work)
        shutil.rmtree(self.work, ignore_errors=True)  # what an earlier run left says nothing of this one
        os.makedirs(self.work)
        self._numbers = itertools.count(1)
        self._answers = {}
        self.console = Console("outer", os.path.join(self.work, "outer.log"), show)
        self._agent = Console("agent", os.path.join(self.work, "agent.log"))
        self.ports = [Console(f"guest{n}" if n else "guest", os.path.join(self.work, f"guest{n}.log"), show)
                      for n in range(self.PORTS)]
        command = self._command(images.kernel("amd64").image, images.outer(), cpus, memory_mb, drives)
        streams = [self.console, self._agent, *self.ports]
        self._qemu_log = open(os.path.join(self.work, "qemu.log"), "w+", encoding="utf-8")
        self._process = subprocess.Popen(
            command, cwd=self.work, stdin=subprocess.DEVNULL, stdout=self._qemu_log, stderr=subprocess.STDOUT,
            pass_fds=[stream.theirs.fileno() for stream in streams])
        for stream in streams:
            stream.started()

    # One processor more than asked for: no command runs on the first (outer_init.sh says why).
    # `tsc=reliable` is true: all processors of a software CPU have one clock. A busy host is no lockup (nowatchdog), and
    # no broken timer (no_timer_check).
    def _command(self, kernel, initrd, cpus, memory_mb, drives):
        command = [
            QEMU, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,+svm", "-smp", str(cpus + 1),
            "-m", str(memory_mb), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", kernel, "-initrd", initrd, "-append",
            f"console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable nowatchdog no_timer_check lab.work={self.work}",
            "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            "-virtfs", f"local,path={self.work},mount_tag=work,security_model=none",
            "-chardev", f"socket,id=console,fd={self.console.theirs.fileno()}", "-serial", "chardev:console",
            "-monitor", "unix:monitor,server=on,wait=off",  # in `work`: for whoever looks into a machine that hangs
            "-device", "virtio-serial",
            "-chardev", f"socket,id=agent,fd={self._agent.theirs.fileno()}",
            "-device", "virtserialport,chardev=agent,name=agent",
        ]
        for number, port in enumerate(self.ports):
            command += ["-chardev", f"socket,id=vm{number},fd={port.theirs.fileno()}",
                        "-device", f"virtserialport,chardev=vm{number},name=vm{number}"]
        for drive in drives:
            command += ["-drive", f"file={drive},format=raw,if=virtio,cache=unsafe"]
        return command

    def __enter__(self):
        try:
            self._agent.expect(r"^up \S+\n", UP_LIMIT_S)
            self.must(["python3", KEEP_KVM], UP_LIMIT_S)
        except Missed as missed:
            self.__exit__(None, None, None)
            raise Missed(f"the outer machine did not come up: {missed}") from None
        return self

    def __exit__(self, kind, error, trace):
        died = self._process.poll()
        if died is not None:
            say(f"{QEMU} has ended by itself, with {died}")
        try:
            self._agent.send("off now\n")
            self._process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._qemu_log.seek(0)
        said = self._qemu_log.read().strip()
        if said:
            say(f"{QEMU} said: {said[-2000:]}")
        for stream in [self.console, self._agent, *self.ports]:
            stream.close()
        self._qemu_log.close()

    def start(self, command):
        """Starts a shell command, given as text or as a list of words. Returns its Job at once."""
        if not isinstance(command, str):
            command = " ".join(shlex.quote(str(word)) for word in command)
        assert "\n" not in command, command
        job = Job(self, next(self._numbers), command)
        self._agent.send(f"{job.number} {command}\n")
        return job

    def run(self, command, limit_s=300):
        """Runs a shell command to its end. Returns its Result, whatever its status."""
        return self.start(command).wait(limit_s)

    def must(self, command, limit_s=300):
        """Runs a shell command that has to end with 0. Returns what it printed."""
        done = self.run(command, limit_s)
        if done.status != 0:
            raise Missed(f"in the outer machine: {done.command}: exit status {done.status}: {done.output[-2000:]}")
        return done.output

    def run_here(self, words):
        """Runs a command of the host in the folder we are in, and prints what it prints as it comes. Returns its
        exit status."""
        port = self.ports[0]
        port.passed_on = sys.stdout.buffer
        command = " ".join(shlex.quote(str(word)) for word in words)
        job = self.start(f"cd {shlex.quote(os.getcwd())}; exec <>/dev/lab-vm0 >&0 2>&0; {command}; "
                         "status=$?; printf '\\036'; exit $status")
        port.expect(END_MARK, 24 * 3600)
        return job.wait(60).status

    def emulator_has_failed(self):
        """Whether QEMU, and nothing that runs in it, is why something failed. CONTEXT: once something has. Returns what
        shows it, or nothing: a guest was run with the outer kernel's state, that kernel overran its stack or panicked at
        VMRUN, it does not answer at all, QEMU died of a signal, or a Linux guest came to a triple fault or
        died of a breakpoint, of which we write none (docs/adr/0013-the-lab.md says why)."""
        try:
            mixed = self.run(f"grep 'kvm_exit:' {TRACING}/instances/mixed/trace", 60)
            if mixed.status == 0:
                last = self.run(f"tail -n 14 {TRACING}/trace", 60).output
                return f"a guest was run with the outer kernel's state; KVM's exits up to there:\n{last}"
            if self._somebody_said(TRIPLE_FAULT):
                last = self.run(f"grep -B 12 'reason shutdown' {TRACING}/trace | tail -n 26", 60).output
                return f"a guest came to a triple fault; KVM's last exits before it:\n{last}"
        except (Missed, OSError):
            died = self._process.poll()
            if died is None:
                return "the outer kernel does not answer"
            if died < 0:
                return f"{QEMU} was ended by signal {-died}"
        stale = next(filter(None, (STALE_BREAKPOINT.search(port.since(0)) for port in self.ports)), None)
        if stale:
            return f"a guest died of a breakpoint that stood there before: {stale[0].strip()}"
        with open(os.path.join(self.work, "outer.log"), encoding="utf-8", errors="replace") as file:
            return next((line.strip() for line in file if re.search(BROKEN_KERNEL, line)), "")

    def _somebody_said(self, text):
        """Whether a guest's console or a command's output has it."""
        for name in os.listdir(self.work):
            if name.endswith((".log", ".out")):
                with open(os.path.join(self.work, name), encoding="utf-8", errors="replace") as said:
                    if text in said.read():
                        return True
        return False

    def hear(self):
        """Takes in what the agent has said since."""
        while True:
            try:
                found = self._agent.expect(ANSWER, 0)
            except Missed:
                return
            self._answers[int(found[1])] = int(found[2])

    def knows(self, number):
        return number in self._answers

    def answer(self, number, limit_s, command):
        """CONTEXT: Job. The exit status of a command that ended."""
        while number not in self._answers:
            try:
                found = self._agent.expect(ANSWER, limit_s)
            except Missed as missed:
                raise Missed(f"in the outer machine: {command}: {missed}") from None
            self._answers[int(found[1])] = int(found[2])
        return self._answers[number]


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
