# SPDX-License-Identifier: Apache-2.0
"""Builds each variant of the project, runs each suite, and counts what passed, failed and was skipped.

Every suite prints a line with its counts; the last line of all is `N passed, N failed, N skipped`. The exit status
is 0 only where nothing failed. Tests are registered with meson (suite, time limit, protocol); this runner reads
them from the build folder, because `meson test` counts a whole GoogleTest program as one test.
"""

import argparse
import atexit
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lab"))
from elsewhere import KvmElsewhere, kvm_usable  # noqa: E402
from huge_pages import HugePages  # noqa: E402
from skip import Unavailable  # noqa: E402

SUITES = ["unit", "kvm", "cli", "stress", "sched", "lab", "model"]
NEEDS_KVM = ["kvm", "stress", "cli"]  # where the host has none they run in the lab, which is this much slower:
LAB_SLOWNESS = 8
QUICK_IN_LAB = ["lab-boot"]  # of the scenarios, what --quick runs
LONG_IN_LAB = ["lab-migrate"]  # and what --long alone does
SANITIZED = ["unit", "fuzz", "kvm", "cli", "sched", "stress"]  # fuzz is there only: libFuzzer is clang's
# Under ThreadSanitizer: what runs without KVM, and what must be built for it.
RACES = ["unit", "sched"]
RACES_TARGETS = ["tests/unit/stopper/stopper_tests", "tests/unit/vmm_parts_tests", "tests/unit/command/command_tests", "tests/unit/control/control_tests",
                 "tests/unit/net/net_tests", "tests/unit/linux/linux_guest_tests", "tests/unit/virtio/virtio_tests",
                 "tests/unit/patch/patch_tests", "tests/unit/state/state_tests",
                 "tests/unit/snapshot/snapshot_tests", "tests/unit/migrate/migrate_tests",
                 "tests/sched/sched_tests"]
# Of the snapshots' tests, those that do the same thousands of times with other bytes or another call that fails: minutes,
# for what the others do as well with as many threads.
NO_RACES = "-ChainFaultTest.*:HostileTest.*:KillTest.*:FaultTest.Killed*"
CLOSING = re.compile(rb"^(?:\w+: )?(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)
GTEST = re.compile(rb"^\[  (PASSED|FAILED|SKIPPED ?) +\] (\d+) tests?\b", re.M)
TOLD_SKIP = 77  # the exit status of a test program that skips itself
SECOND_ATTEMPT = " says nothing, as "  # of tests/lab/run, of an attempt that its emulator broke
# A run without --long ends within the hour, also where processors are few and busy: what has not begun by then is skipped
# aloud, the most telling having come first. An idle host comes to the end of it all.
BUDGET_S = 3000
BUILD_LIMIT_S = 1800  # for what hangs: a build without ccache's help on a busy host takes many minutes
BESIDE = set()  # the pids of what runs beside the suites
HUGE_PAGES = 40  # 80 MiB: the test that wants most has a guest of 64 MiB in them


class Counts:
    def __init__(self, passed=0, failed=0, skipped=0):
        self.passed, self.failed, self.skipped = passed, failed, skipped

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def say(text):
    print(text, flush=True)


def adopt_orphans():
    """Makes this process the parent of whatever its children leave behind, so that it is seen, and ended."""
    PR_SET_CHILD_SUBREAPER = 36
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def end_orphans():
    """Ends what the last command left running, and what that had started. Returns their command lines."""
    left = []
    while found := end_children():
        left += [line for line in found if line]
    return left


def end_children():
    """Ends and buries each process we have become the parent of. Returns their command lines, "" for the dead."""
    left = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                state, parent = stat.read().rsplit(")", 1)[1].split()[:2]
            if int(parent) != os.getpid() or int(entry) in BESIDE:
                continue
            with open(f"/proc/{entry}/cmdline", encoding="utf-8", errors="replace") as words:
                line = words.read().replace("\0", " ").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        left.append(line if state != "Z" else "")
        if state != "Z":
            os.kill(int(entry), signal.SIGKILL)
        os.waitpid(int(entry), 0)
    return left


def run(command, limit_s, env=None, cwd=None):
    """Runs a command in a process group of its own. Returns its status (None: out of time) and its output."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=env, cwd=cwd, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=limit_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output


class Beside:
    """A command that takes what the suites leave of the processors, and is judged at the end."""

    def __init__(self, command):
        self.begin = time.monotonic()
        self.output = tempfile.TemporaryFile()  # not a pipe: nobody reads before the end
        self.process = subprocess.Popen(
            ["nice", "-n", "19", *command], stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT,
            start_new_session=True)
        BESIDE.add(self.process.pid)
        atexit.register(self.end)

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def finish(self, limit_s):
        """Returns its status (None: out of time) and its output."""
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
            self.end()
        BESIDE.remove(self.process.pid)
        with self.output as output:
            output.seek(0)
            return status, output.read()


def show(output, lines):
    say("\n".join("    " + line for line in output.decode(errors="replace").splitlines()[-lines:]))


def count(status, output):
    """What a test program's output says it did; its exit status where it says nothing."""
    closing = CLOSING.findall(output)
    gtest = GTEST.findall(output)
    if closing:
        counts = Counts(*(int(number or 0) for number in closing[-1]))
    elif gtest:
        said = {word.strip(): int(number) for word, number in gtest}
        counts = Counts(said.get(b"PASSED", 0), said.get(b"FAILED", 0), said.get(b"SKIPPED", 0))
    else:
        counts = Counts(skipped=1) if status == TOLD_SKIP else Counts(passed=1)
    if status not in (0, TOLD_SKIP) and counts.failed == 0:
        counts.failed = 1  # it died, hung, or failed without saying what
    return counts


class Run:
    def __init__(self, mode):
        self.mode = mode
        self.total = Counts()
        self.begin = time.monotonic()
        self.elsewhere = None if kvm_usable() else KvmElsewhere(os.getcwd())

    def late(self):
        """Whether it is time to end."""
        return self.mode != "long" and self.elsewhere is None and time.monotonic() - self.begin > BUDGET_S

    def skip(self, name):
        self.total.add(Counts(skipped=1))
        say(f"{name}: {Counts(skipped=1)}  (skipped: {BUDGET_S} s are over on this host; --long has no such end)")
        return False

    def step(self, name, command, env=None, limit_s=BUILD_LIMIT_S):
        """One command that passes or fails as a whole."""
        if self.late():
            return self.skip(name)
        begin = time.monotonic()
        return self.judge(name, begin, *run(command, limit_s, env))

    def judge_beside(self, name, beside):
        """Of a Beside: it passes, fails, or is skipped where it has found nothing and the time is over."""
        limit_s = BUILD_LIMIT_S
        if self.mode != "long":
            limit_s = max(10, min(limit_s, self.begin + BUDGET_S - time.monotonic()))
        status, output = beside.finish(limit_s)
        if status is None and not output.strip() and self.late():
            self.skip(name)
        else:
            self.judge(name, beside.begin, status, output)

    def judge(self, name, begin, status, output):
        counts = Counts(passed=1) if status == 0 else Counts(failed=1)
        if status != 0:
            show(output, 80)
        self.total.add(counts)
        say(f"{name}: {counts}  ({time.monotonic() - begin:.0f} s)")
        return status == 0

    def set_up(self, folder, name, env, options):
        exists = os.path.exists(os.path.join(folder, "build.ninja"))
        if not exists and os.path.isdir(folder):
            shutil.rmtree(folder)  # left over from a set-up that failed
        setup = ["meson", "configure", folder] if exists else ["meson", "setup", folder]
        return self.step(f"set up {name}", setup + options, env)

    def build(self, folder, name, env, targets=()):
        return self.step(f"build {name}", ["ninja", "-C", folder, *targets], env)

    def suite(self, folder, suite, label=None, extra_env=None):
        label = label or suite
        status, listing = run(["meson", "introspect", folder, "--tests"], 60)
        tests = [test for test in json.loads(listing) if any(s.split(":")[-1] == suite for s in test["suite"])]
        if suite == "lab" and self.mode == "quick":
            tests = [test for test in tests if test["name"] in QUICK_IN_LAB]
        if self.mode != "long":
            tests = [test for test in tests if test["name"] not in LONG_IN_LAB]
        if self.late():
            self.skip(label)
            return
        counts = Counts()
        begin = time.monotonic()
        in_lab = self.elsewhere is not None and suite in NEEDS_KVM and not extra_env
        for test in tests:
            if self.late():
                self.skip(f"  {label}/{test['name']}")
            else:
                counts.add(self.one_test(test, label, extra_env, in_lab))
        if not tests:
            say(f"  {label}: no test is registered")
            counts.failed += 1
        self.total.add(counts)
        say(f"{label}: {counts}  ({time.monotonic() - begin:.0f} s)")

    def one_test(self, test, label, extra_env, in_lab):
        own_env = {**test["env"], "STOPVISOR_TEST_MODE": self.mode, **(extra_env or {})}
        limit_s = test["timeout"] * (4 if extra_env else 1) * (30 if self.mode == "long" else 1)
        begin = time.monotonic()
        if in_lab:
            status, output = self.run_in_lab(test, limit_s * LAB_SLOWNESS, own_env)
        else:
            status, output = run(test["cmd"], limit_s, {**os.environ, **own_env}, test["workdir"])
        counts = count(status, output)
        for line in end_orphans():
            say(f"  {label}/{test['name']} left running: {line}")
            counts.failed += 1
        took = time.monotonic() - begin
        if counts.failed:
            show(output, 200)
        verdict = "out of time" if status is None else f"exit status {status}"
        say(f"  {label}/{test['name']}: {counts}  ({took:.1f} s{'' if status == 0 else ', ' + verdict})")
        for line in output.decode(errors="replace").splitlines():
            skipped = counts.skipped and re.search(r"\bskip", line, re.I) and not line.startswith("[")
            if skipped or SECOND_ATTEMPT in line:  # neither is to look like a plain pass
                say(f"    {line.strip()[:200]}")
        return counts

    def run_in_lab(self, test, limit_s, env):
        try:
            return self.elsewhere.run(test["cmd"], limit_s, env, test["workdir"] or os.getcwd())
        except Unavailable as why:
            return TOLD_SKIP, f"skipped: no usable /dev/kvm, and no lab: {why}".encode()

    def close(self):
        if self.elsewhere:
            self.elsewhere.close()


SANITIZER_ENV = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=99",
}


def main():
    parser = argparse.ArgumentParser(prog="tools/test", description="Run the tests of Stopvisor.")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--quick", action="store_true", help="one build, the short form of each suite: under 3 minutes")
    modes.add_argument("--long", action="store_true", help="the hour-long stress as well")
    parser.add_argument("--only", metavar="SUITE", choices=SUITES, help="one suite: " + ", ".join(SUITES))
    arguments = parser.parse_args()
    mode = "quick" if arguments.quick else "long" if arguments.long else "full"
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what begins here ends with us
    pages = HugePages(HUGE_PAGES)
    BESIDE.add(pages.pid)
    atexit.register(pages.end)
    if pages.missing:
        say(f"No {HUGE_PAGES} huge pages for the tests, those that need some are skipped: {pages.missing}")
    work = Run(mode)
    if work.elsewhere:
        say("No usable /dev/kvm here: the suites " + ", ".join(NEEDS_KVM) + " run in the lab (tests/lab/README.md), "
            "a machine under QEMU's software CPU: correct, and slow.")
    clang = {**os.environ, "CXX": "clang++-19", "CCACHE_SLOPPINESS": "pch_defines,time_macros"}  # see meson.build
    asan, tsan = "clang-19, ASan+UBSan", "clang-19, TSan"
    all_of_it = mode != "quick" and not arguments.only
    built = work.set_up("build", "gcc", None, []) and work.build("build", "gcc", None)
    tidy = None
    if all_of_it and work.set_up("build-asan", asan, clang, ["-Db_sanitize=address,undefined", "-Db_lundef=false"]):
        tidy = Beside(["tools/check-tidy", *(["--deep"] if mode == "long" else []), "build-asan"])
    if built:
        for suite in [arguments.only] if arguments.only else SUITES:
            work.suite("build", suite)
    if all_of_it:
        work.step("demo", ["tools/demo"], limit_s=900)
        work.step("format", ["tools/check-format"])
        if (work.set_up("build-tsan", tsan, clang, ["-Db_sanitize=thread", "-Db_lundef=false", "-Dkvm_tests=false"]) and
                work.build("build-tsan", tsan, clang, RACES_TARGETS)):
            for suite in RACES:
                work.suite("build-tsan", suite, f"{suite} (TSan)", {**SANITIZER_ENV, "GTEST_FILTER": NO_RACES})
        if tidy and work.build("build-asan", asan, clang):
            for suite in SANITIZED:
                work.suite("build-asan", suite, f"{suite} (ASan+UBSan)", SANITIZER_ENV)
        if tidy:
            work.judge_beside("clang-tidy", tidy)
    work.close()
    say("")
    say(str(work.total))
    return 1 if work.total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
