# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command share: a socket directory of their own, VMs that never outlive a test, and the
probe guest's counters.

The build gives the command's path in STOPVISOR. Every wait has a limit and watches a condition; no test measures time.
"""

import ctypes
import http.client
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import raw_guest

LIMIT_S = 120  # for anything that must happen; a hang fails the test instead of the run
STOP_LIMIT_S = 50  # for a stop that somebody else's may come before, on a host with other work
STOPVISOR = os.environ.get("STOPVISOR", "stopvisor")

# Whoever runs the tests may have these ignored (nohup, a shell's "&"), and the command would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)

# From guest/probe_abi.h.
RESULTS_GPA = 0x200000
LEDGER_GPA = 0x400000
CPU_RESULTS_OFFSET = 192
CPU_RESULTS_BYTES = 640
SLICES_OFFSET = 8
IO_OFFSET = 488  # io_port_writes, io_port_reads, io_mmio_writes, io_mmio_reads, io_bad


def kvm_usable():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        return True
    except OSError:
        return False


def may_watch_memory():
    """Whether userfaultfd can be had, as the VM gets it: by its device, or by the system call, which needs a right."""
    try:
        os.close(os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC))
        return True
    except OSError:
        SYS_userfaultfd = 323  # x86-64
        file = ctypes.CDLL(None, use_errno=True).syscall(SYS_userfaultfd, os.O_CLOEXEC)
        if file >= 0:
            os.close(file)
        return file >= 0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a VM's socket."""

    def __init__(self, path):
        super().__init__("stopvisor", timeout=LIMIT_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(self.path)

    def ask(self, method, target, body=None, headers=None):
        """Returns the HTTP status and the JSON document of the answer."""
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        self.request(method, target, body=body, headers=headers or {})
        answer = self.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None


class CommandCase(unittest.TestCase):
    """The command, in a socket directory of its own."""

    def setUp(self):
        self.runtime = tempfile.mkdtemp(prefix="sv")
        self.addCleanup(shutil.rmtree, self.runtime, ignore_errors=True)
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.runtime)
        self.env.pop("STOPVISOR_TIMEOUT", None)
        self.directory = os.path.join(self.runtime, "stopvisor")

    def stopvisor(self, *words, **options):
        """Runs the command to its end."""
        options.setdefault("env", self.env)
        options.setdefault("text", True)
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([STOPVISOR, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=LIMIT_S, **options)

    def good(self, *words, **options):
        """Runs the command, which must succeed, and returns what it printed."""
        done = self.stopvisor(*words, **options)
        self.assertEqual(done.returncode, 0, f"{words}: {done.stderr}")
        return done.stdout

    def refused(self, status, *words, **options):
        """Runs the command, which must end with `status` and one line on stderr; returns that line."""
        done = self.stopvisor(*words, **options)
        self.assertEqual(done.returncode, status, f"{words}: {done.stdout}{done.stderr}")
        lines = done.stderr.splitlines()
        self.assertEqual(len(lines), 1, f"{words}: {done.stderr}")
        self.assertTrue(lines[0].startswith("stopvisor: "), lines[0])
        return lines[0]

    def left_behind(self):
        return sorted(os.listdir(self.directory)) if os.path.isdir(self.directory) else []

    def eventually(self, condition, what):
        limit = time.monotonic() + LIMIT_S
        while not condition():
            self.assertLess(time.monotonic(), limit, f"never: {what}")
            time.sleep(0.005)  # between looks at another process, which tells nobody when it changes


@unittest.skipUnless(kvm_usable(), "/dev/kvm cannot be used")
class VmCase(CommandCase):
    """VMs on the real KVM, ended with their test."""

    def setUp(self):
        super().setUp()
        self.env["STOPVISOR_TIMEOUT"] = f"{STOP_LIMIT_S}s"
        self.pids = []
        self.addCleanup(self.end_all)

    def end_all(self):
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.eventually(lambda pid=pid: not alive(pid), f"end of {pid}")

    def start(self, *options, name="vm1"):
        """Starts a VM in the background and returns its pid."""
        pid = json.loads(self.good("run", "--name", name, "--detach", "--json", *options))["pid"]
        self.pids.append(pid)
        return pid

    def start_raw(self, code, *options, **more):
        """The same with a guest of tests/cli/raw_guest.py."""
        path = raw_guest.kernel(code)
        self.addCleanup(os.unlink, path)
        memory = () if "--memory" in options else ("--memory", "4M")
        return self.start("--kernel", path, *memory, *options, **more)

    def foreground(self, *options, name="vm1", **popen):
        """Starts a VM as a child of ours and waits until it answers."""
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        child = subprocess.Popen([STOPVISOR, "run", "--name", name, *map(str, options)], env=self.env, **popen)
        self.pids.append(child.pid)
        self.addCleanup(lambda: [stream.close() for stream in (child.stdout, child.stderr, child.stdin) if stream])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)  # goes first: a test that fails must not wait for its VM
        self.eventually(lambda: child.poll() is not None or self.stopvisor("status", name).returncode == 0,
                        f"{name} answers")
        return child

    def socket_path(self, name="vm1"):
        return os.path.join(self.directory, name + ".sock")

    def connect(self, name="vm1"):
        connection = UnixConnection(self.socket_path(name))
        self.addCleanup(connection.close)
        connection.connect()
        return connection

    def status(self, name="vm1"):
        return json.loads(self.good("status", name, "--json"))

    def peek(self, address, length, name="vm1"):
        return bytes.fromhex(json.loads(self.good("peek", name, address, length, "--json"))["bytes"])

    def guest_word(self, gpa, name="vm1"):
        return struct.unpack("<Q", self.peek(hex_gpa(gpa), 8, name))[0]

    def wait_until_guest_runs(self, cpus, name="vm1"):
        for cpu in range(cpus):
            at = cpu_results_gpa(cpu) + SLICES_OFFSET
            self.eventually(lambda at=at: self.guest_word(at, name) > 0, f"vCPU {cpu} runs")

    def guest_goes_on(self, name="vm1", cpu=0):
        """Whether the guest's heart beats: true as soon as it does, so that a true one never hangs."""
        at = cpu_results_gpa(cpu) + SLICES_OFFSET
        first = self.guest_word(at, name)
        self.eventually(lambda: self.guest_word(at, name) != first, f"{name} goes on")


def alive(pid):
    """Whether any thread of the process is left, and so any of its files open."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return not poll.poll(0)
    finally:
        os.close(process)


def hex_gpa(gpa):
    return f"gpa:{gpa:#x}"


def cpu_results_gpa(cpu):
    return RESULTS_GPA + CPU_RESULTS_OFFSET + cpu * CPU_RESULTS_BYTES


def main():
    """Runs the tests of the calling file and closes with the line tests/run.py counts."""
    program = unittest.main(module="__main__", exit=False, verbosity=2)
    result = program.result
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    skipped = len(result.skipped)
    passed = result.testsRun - failed - skipped
    sys.stderr.flush()
    print(f"cli: {passed} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed else 77 if passed == 0 else 0)
