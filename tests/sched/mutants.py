#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks a copy of the stopper in one place at a time, and expects the scheduler to find each break.

  mutants.py --compiler 'ccache g++' --library build/tests/sched/libsched_engine.a [NAME...]

Each mutant is an exact replacement of text that must be there once: where the stopper has changed so that it is not,
the mutant has to be written anew, and this says so and fails. Production code knows nothing of mutants.
STOPVISOR_TEST_MODE=quick or full takes those that stand for the rest, long and no mode at all take every one. Exit status: 0 all were found, 1 not.
"""

import argparse
import concurrent.futures
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RUN_LIMIT_S = 600
ANY = "random --count 20000"


@dataclass
class Mutant:
    name: str
    file: str
    old: str
    new: str
    search: str = ANY  # what finds it
    finds: str = ""  # what the violation must say, where only one thing would do
    quick: bool = False


MUTANTS = [
    # ---- those the issue names
    Mutant("next stop does not wait for the exit of the last", "stopper/stop_machine_life.h",
           "  WideStop* const next = wide_->stop.state() == State::kNone ? wide_ : &wides_[wide_ == wides_.data() ? 1 : 0];\n"
           "  if (wait == Wait::kNo && next->stop.state() == State::kExit) {\n    facility_.unlock();\n"
           "    return std::unexpected(StopError{StopErrc::kBusy});\n  }\n  hurry_out(next->stop, deadline);\n"
           "  if (next->stop.wait_while(State::kExit, deadline) == State::kExit) {",
           "  WideStop* const next = wide_;\n  if (false) {", quick=True),
    Mutant("a barrier is used again before everybody has left it", "stopper/stop_machine_life.h",
           "if (next->stop.wait_while(State::kExit, deadline) == State::kExit) {",
           "if (false) {"),
    Mutant("a report is overwritten before it was settled", "stopper/stop_machine_life.h",
           "  settle_report(*wide_); // before it is written anew\n", ""),
    Mutant("a vCPU's exit is not acknowledged", "stopper/multi_stop.h",
           "    ack(State::kExit); // INV4: nothing of ours after this line", "", quick=True),
    Mutant("immediate_exit cleared after the check", "tests/sched/world.cpp",
           """    self.immediate_exit = false;
    if (machine.should_run(cpu)) {
      machine.note_out(cpu, 7);
      machine.run_works(cpu);
      continue;
    }
""",
           """    if (machine.should_run(cpu)) {
      machine.note_out(cpu, 7);
      machine.run_works(cpu);
      continue;
    }
    take_signal(self);
    self.immediate_exit = false;
""", quick=True),
    Mutant("two stoppers queued while a wide stop is queueing", "stopper/stop_machine_narrow.h",
           "const bool clear = stop_cpus_in_progress_.load(std::memory_order_acquire) == 0; // Q1",
           "const bool clear = true;", quick=True),
    Mutant("two stoppers queued one after the other", "stopper/stop_machine_narrow.h",
           """    if (online && clear)
      std::ignore = lower.stopper->queue_locked(lower.work) && upper.stopper->queue_locked(upper.work);
    upper.stopper->lock().unlock();
    lower.stopper->lock().unlock();
""",
           """    upper.stopper->lock().unlock();
    lower.stopper->lock().unlock();
    if (online && clear)
      std::ignore = one.stopper->queue(one.work) && two.stopper->queue(two.work);
""", quick=True),
    Mutant("Prepare acknowledged twice", "stopper/multi_stop.h",
           """    ack(State::kPrepare);
    if (slot.active""",
           """    ack(State::kPrepare);
    ack(State::kPrepare);
    if (slot.active""", quick=True),
    Mutant("state read twice in one loop", "stopper/stop_machine_gather.h",
           """  for (State state = stop.state(); state != State::kNone; state = stop.state())
    stop.wait_while(state, kForever);""",
           """  while (stop.state() != State::kNone)
    stop.wait_while(stop.state(), kForever);""", quick=True),

    # ---- the barrier
    Mutant("Exit acknowledged twice", "stopper/multi_stop.h",
           "    ack(State::kExit); // INV4: nothing of ours after this line",
           "    ack(State::kExit);\n    ack(State::kExit);"),
    Mutant("abort without an exchange", "stopper/multi_stop.h",
           """    if (!state_.compare_exchange_strong(expected, static_cast<uint32_t>(State::kExit), std::memory_order_acq_rel,
                                        std::memory_order_relaxed)) // M1; failed: the caller reads again
      return false;""",
           """    if (state_.load(std::memory_order_acquire) != expected)
      return false;
    state_.store(static_cast<uint32_t>(State::kExit), std::memory_order_release);"""),
    Mutant("gates opened before the state changes", "stopper/multi_stop.h",
           "      auto expected = static_cast<uint32_t>(from);\n      // acq_rel: hands on",
           "      if (next == State::kExit)\n        open_gates(true);\n"
           "      auto expected = static_cast<uint32_t>(from);\n      // acq_rel: hands on"),
    Mutant("vCPUs let go before the workers", "stopper/multi_stop.h",
           "    if (!plan_.workers.empty())\n      open(worker_gate_, kOpen);\n    worker_out();",
           "    open_vcpu_gates();\n    if (!plan_.workers.empty())\n      open(worker_gate_, kOpen);\n    worker_out();"),
    Mutant("nobody is woken when a gate opens", "stopper/multi_stop.h",
           "    gate.store(how, std::memory_order_release); // M3, pairs with pass()\n    P::wake_all(gate);",
           "    gate.store(how, std::memory_order_release);"),
    Mutant("nobody is woken when everybody has left", "stopper/multi_stop.h",
           "      case State::kNone:\n        P::wake_all(state_);\n        return;",
           "      case State::kNone:\n        return;"),
    Mutant("an offline vCPU is not excused", "stopper/stop_machine_gather.h",
           "      stop.excuse(*slot);",
           "      slot->excused = true;"),
    Mutant("an excused runner is still awaited", "stopper/multi_stop.h",
           "    if (slot.active)\n      acks(State::kRun).fetch_sub",
           "    if (false)\n      acks(State::kRun).fetch_sub"),
    Mutant("a work that was given up stays queued", "stopper/stop_machine_gather.h",
           "      if (slot->stopper->cancel(slot->work)) {\n        stop.stragglers.set(slot->cpu);",
           "      if (BasicStopper<P>::in_use(slot->work)) {\n        stop.stragglers.set(slot->cpu);"),
    Mutant("a straggler's exit is not acknowledged for it", "stopper/stop_machine_gather.h",
           "        stop.disown(*slot);\n", ""),

    # ---- workers at rest
    Mutant("a worker at rest is let be, and may rise", "stopper/stop_machine_gather.h",
           "      stop.catch_worker(*slot);",
           "      std::ignore = slot->stopper->cancel(slot->work);\n      stop.excuse_worker(*slot);"),
    Mutant("a worker goes to work without rising", "stopper/stopper.h",
           "    at_rest_ = false;\n", ""),
    Mutant("a worker that rises is held and acknowledged twice", "stopper/multi_stop.h",
           "    if (slot.came.exchange(1, std::memory_order_relaxed) == 0) {\n      slot.out_ns", "    {\n      slot.out_ns"),
    Mutant("the work of a worker at rest is left in its queue", "stopper/multi_stop.h",
           "      if (slot->at_rest && slot->stopper->cancel(slot->work)) {", "      if (slot->at_rest) {"),
    Mutant("a worker at rest runs a work beside the stop that caught it", "stopper/stopper.h",
           "const bool at_rest = at_rest_ && first_ == nullptr;", "const bool at_rest = at_rest_;",
           search="exhaustive --bound 2 --scenario worker-nowait", finds="while participant"),

    # ---- queues, locks, hotplug
    Mutant("kicked before the work is queued", "stopper/stop_machine_narrow.h",
           "  if (!slot.stopper->queue(slot.work))\n"
           "    return std::unexpected(StopError{StopErrc::kNoSuchCpu, CpuMask::of(cpu)});\n  kick_.kick(cpu);\n",
           "  kick_.kick(cpu);\n  if (!slot.stopper->queue(slot.work))\n"
           "    return std::unexpected(StopError{StopErrc::kNoSuchCpu, CpuMask::of(cpu)});\n"),
    Mutant("who was lifted for a stop of one is not lowered", "stopper/stop_machine_gather.h",
           "    break;\n  }\n  restore_lifted(slots);\n  return stragglers;", "    break;\n  }\n  return stragglers;",
           search="exhaustive --bound 1 --scenario late-one-two", finds="nobody lowered it"),
    Mutant("who was lifted for a stop is not lowered", "stopper/stop_machine_gather.h",
           "    stop.wait_while(state, kForever);\n  restore_lifted(stop.plan().vcpus);",
           "    stop.wait_while(state, kForever);", finds="nobody lowered it"),
    Mutant("parked with works queued", "stopper/stopper.h",
           "    if (first_ != nullptr)\n      return false;\n    enabled_.store(0", "    enabled_.store(0",
           search="exhaustive --bound 1 --scenario one-offline"),
    Mutant("parked first, drained second", "stopper/stopper.h",
           "    if (first_ != nullptr)\n      return false;\n"
           "    enabled_.store(0, std::memory_order_release); // S3, and under the lock\n    return true;",
           "    enabled_.store(0, std::memory_order_release);\n    return first_ == nullptr;",
           search="exhaustive --bound 2 --scenario one-offline-hold", finds="while participant"),
    Mutant("a vCPU comes online in the middle of a stop", "stopper/stop_machine_life.h",
           "  if (!hotplug_.write_lock_until(deadline))\n    return std::unexpected(StopError{StopErrc::kDeadline});\n"
           "  auto done = unpark_cpuslocked(cpu);",
           "  std::ignore = hotplug_.write_lock_until(TimePoint{});\n  auto done = unpark_cpuslocked(cpu);"),
    Mutant("a contended lock wakes nobody", "stopper/lock.h",
           "    if (word_.exchange(kFree, std::memory_order_release) == kContended)\n      P::wake_one(word_);",
           "    word_.exchange(kFree, std::memory_order_release);"),
    Mutant("a lock that was waited for is not marked contended", "stopper/lock.h",
           "    while (word_.exchange(kContended, std::memory_order_acquire) != kFree) { // L1",
           "    while (!try_lock()) {\n      if (word_.exchange(kContended, std::memory_order_acquire) == kFree)\n"
           "        return true;"),
    Mutant("the completion is touched after it was signalled", "stopper/work.h",
           "      P::wake_all(complete_);\n    }",
           "      P::wake_all(complete_);\n      todo_.store(0, std::memory_order_relaxed);\n    }",
           finds="does not exist any more"),

    # ---- shared stops
    Mutant("the lead is not passed on", "stopper/stop_service.h",
           "        if (leads) // we were made the leader just now: somebody else must be\n          pass_on_lead();\n", ""),
    Mutant("a leader that gives up keeps the stop", "stopper/stop_service.h",
           "  if (!somebody_leads_ && holds_ == 0)\n    stop_.release();\n", "",
           search="exhaustive --bound 2 --scenario service-hold-deadline"),
    Mutant("the last hold releases the stop under a leader", "stopper/stop_service.h",
           "if (holds_ == 0 && !somebody_leads_) // a leader", "if (holds_ == 0) // a leader"),
    Mutant("a request is executed by two", "stopper/stop_service.h",
           "      request = first_;\n      unlink(*request);", "      request = first_;"),
]


def mutate(mutant, folder):
    """Copies what the mutant's program is made of, with the one change. Returns what is wrong, or None."""
    for name in ("stopper", "tests/sched"):
        (folder / name).mkdir(parents=True)
        for path in sorted((ROOT / name).iterdir()):
            if path.suffix in (".h", ".cpp"):
                shutil.copyfile(path, folder / name / path.name)
    target = folder / mutant.file
    text = target.read_text()
    if text.count(mutant.old) != 1:
        return f"its text is there {text.count(mutant.old)} times in {mutant.file}: write it anew"
    target.write_text(text.replace(mutant.old, mutant.new))
    return None


def compile_mutant(folder, compiler, library):
    program = folder / "mutant"
    unit = folder / "unit.cpp"
    unit.write_text('#include "tests/sched/everything.cpp"\n#include "tests/sched/machine.cpp"\n')
    command = [*compiler, "-std=c++23", "-D_GNU_SOURCE", "-O1", "-w", f"-I{folder}", f"-I{ROOT}",  # the copies first
               str(unit), str(folder / "stopper/error.cpp"), library, "-o", str(program)]
    built = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return program if built.returncode == 0 else built.stderr


def find(mutant, compiler, library):
    """Returns whether the mutant was found, and one line about it."""
    with tempfile.TemporaryDirectory(prefix="stopvisor-mutant-") as name:
        folder = pathlib.Path(name)
        wrong = mutate(mutant, folder)
        if wrong:
            return False, wrong
        program = compile_mutant(folder, compiler, library)
        if isinstance(program, str):
            return False, "it does not compile:\n" + program
        try:
            ran = subprocess.run([str(program), *mutant.search.split()], stdin=subprocess.DEVNULL,
                                 capture_output=True, text=True, timeout=RUN_LIMIT_S)
        except subprocess.TimeoutExpired:
            return False, "the search did not end"
    said = [line for line in ran.stdout.splitlines() if line.startswith("VIOLATION")]
    if ran.returncode != 1 or not said:
        return False, f"not found by `{mutant.search}` (exit status {ran.returncode}) {ran.stderr[-300:]}"
    if mutant.finds not in said[0]:
        return False, f"found as something else: {said[0]}"
    return True, said[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--library", required=True)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    compiler = shlex.split(arguments.compiler)
    library = os.path.abspath(arguments.library)
    quick = os.environ.get("STOPVISOR_TEST_MODE") in ("quick", "full")
    chosen = [m for m in MUTANTS if (any(n in m.name for n in arguments.names) if arguments.names else
                                     m.quick or not quick)]
    found = 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda mutant: find(mutant, compiler, library), chosen)
        for mutant, (good, line) in zip(chosen, results):
            print(f"{'found' if good else 'MISSED'}: {mutant.name}\n       {line}", flush=True)
            found += good
    print(f"{found} passed, {len(chosen) - found} failed")
    return 0 if found == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
