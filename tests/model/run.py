#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Verifies the Spin models of the stop protocol and of the hand-over, and that each mutant of them is found.

  run.py             everything: about two minutes on two cores, two searches at a time, less than 4 GiB
  run.py --quick     the smaller instances, and a few of the mutants: less than 20 s. STOPVISOR_TEST_MODE=quick does too
  run.py NAME...     the instances and mutants whose names contain one of NAME
  run.py --trace NAME   the same, and prints the steps that lead to each error
  run.py --list      names only

Every search is exhaustive or the instance fails: an error, a search cut off at its depth, its memory or its hash
table, and a verifier that ends in any other way than it should are all failures. Exit status: 0 all passed, 1 not,
77 spin or a C compiler is missing.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAX_DEPTH = 1_000_000
MEMORY_LIMIT_MIB = 3500
TIMEOUT_S = 600


@dataclass
class Instance:
    """One search: a model, its defines, and what is to come out of it."""

    name: str
    model: str
    defines: dict = field(default_factory=dict)
    claim: str = ""  # an LTL formula of the model, checked under weak fairness
    finds: str = ""  # a mutant: what the verifier must say, a regular expression
    ends: bool = False  # searched once more: there must be no cycle, so that every execution comes to its end
    quick: bool = False


def defines(text):
    """'C0=hold_all(0); KICK' and so on: separated by spaces outside of parentheses."""
    result = {}
    for word in re.findall(r"(?:[^\s(]|\([^)]*\))+", text):
        key, _, value = word.partition("=")
        result[key] = value
    return result


DEADLOCK = r"invalid end state"
CYCLE = r"acceptance cycle"


def violates(name):
    return rf"assertion violated {name}\b"


def stop(name, text, **more):
    return Instance(name, "stop.pml", {"EXITS": "0", **defines(text)}, **more)


def kick(name, text="", **more):
    return Instance(name, "kick.pml", defines(text), **more)


def service(name, text="", **more):
    return Instance(name, "service.pml", defines(text), **more)


def handover(name, text="", **more):
    return Instance(name, "handover.pml", defines(text), **more)


ENDLESS = "EXITS=255 LIVENESS"

MODELS = [
    # kick.pml: the vCPU thread's loop.
    kick("kick", quick=True),
    kick("kick: three kickers", "KICKERS=3 WORKS=1 EXITS=3"),
    kick("kick: every work is served at last", "EXITS=255", claim="served", quick=True),
    # stop.pml: one wide stop after the other; with signals, with a worker, with a deadline.
    stop("stops in a row", "C0=hold_all(0) C1=stop_machine(1,1)", quick=True),
    stop("three stops in a row", "C0=hold_all(0);hold_first(0);hold_all(0)", quick=True),
    stop("stops in a row, with kicks", "C0=hold_all(0) C1=stop_machine(1,1) KICK EXITS=1"),
    stop("stops in a row, at rest", "C0=hold_all(0) C1=stop_machine(1,1) KICK", ends=True),
    stop("stops in a row, with a worker", "C0=hold_all(0) C1=stop_machine(1,3) NW=1"),
    stop("three vCPUs", "C0=hold_all(0) C1=stop_machine(1,5) NV=3"),
    stop("a lost kick is repeated", "C0=hold_all(0) KICK LOST=2", ends=True),
    stop("partial stop", "C0=hold_first(0) C1=hold_all(1)"),
    stop("stop of one, deadline", "C0=hold_all(0) C1=stop_one(0) DEADLINE"),
    stop("partial stop, deadline", "C0=hold_all(0) C1=hold_first(1) DEADLINE"),
    # Deadline and abort, from Prepare and from DisableIrq.
    stop("abort", "C0=hold_all(0);hold_all(0) DEADLINE NW=1"),
    stop("abort, then the next stop", "C0=hold_all(0) C1=stop_machine(1,1) DEADLINE NW=1"),
    stop("abort, with kicks", "C0=hold_all(0);stop_machine(0,1) DEADLINE KICK", ends=True),
    stop("abort, a vCPU is stuck", "C0=hold_all(0);hold_all(0) STUCK=2 DEADLINE KICK", quick=True),
    # stop_two_cpus() against wide stops and against itself.
    stop("two against all", "C0=stop_machine(0,1) C1=stop_two(1,1,0,0,1) HAS_TWO=2", quick=True),
    stop("two against two", "C0=stop_two(0,0,1,0,1) C1=stop_two(1,1,0,0,1) HAS_TWO=2"),
    stop("two against all, deadline", "C0=hold_all(0) C1=stop_two(1,1,0,0,1) HAS_TWO=2 DEADLINE"),
    stop("two of three against all", "C0=hold_all(0) C1=stop_two(1,2,1,1,2) HAS_TWO=2 NV=3"),
    # Hotplug.
    stop("a vCPU parks", "C0=stop_machine(0,3);hold_all(0) C1=unpark(1) PARKS=2"),
    stop("a vCPU parks, with kicks", "C0=hold_all(0);stop_machine(0,2) C1=unpark(1) PARKS=2 KICK"),
    stop("all vCPUs park", "C0=stop_machine(0,3);hold_all(0) PARKS=3"),
    stop("a vCPU parks, deadline", "C0=stop_machine(0,2);hold_all(0) C1=unpark(1) PARKS=2 DEADLINE"),
    stop("a vCPU parks, two against all", "C0=stop_machine(0,1) C1=stop_two(1,1,0,0,1) HAS_TWO=2 PARKS=2"),
    stop("a worker parks", "C0=hold_all(0) C1=unpark(2) NW=1 PARKS=4"),
    stop("a worker parks, deadline", "C0=hold_all(0) NW=1 PARKS=4 DEADLINE"),
    stop("a vCPU is added", "C0=stop_machine(0,3) C1=bring_up(1,1) HAS_INACTIVE OFFLINE=2", quick=True),
    stop("a vCPU is added, with a worker", "C0=hold_all(0) C1=bring_up(1,1) HAS_INACTIVE OFFLINE=2 NW=1 DEADLINE"),
    stop("a vCPU parks, stop of one", "C0=hold_all(0) C1=stop_one(1) C2=unpark(1) PARKS=2"),
    # service.pml: clients that share stops, and hold the VM.
    service("service: callbacks and a hold", "RUNS=2 HOLDS=1"),
    service("service: holds are counted", "RUNS=1 HOLDS=2"),
    service("service: three callbacks", "RUNS=3 HOLDS=1"),
    service("service: deadline", "RUNS=2 HOLDS=1 DEADLINE=1", quick=True),
    service("service: everybody has a deadline", "RUNS=2 HOLDS=1 DEADLINE=7"),
    service("service: the VM ends", "RUNS=1 HOLDS=2 CLOSE", quick=True),
    service("service: the VM ends, deadline", "RUNS=2 HOLDS=1 DEADLINE=7 CLOSE"),
    # handover.pml: a migration's two sides, over links that break, with processes that die.
    handover("hand-over", "LINKS=3", quick=True),
    handover("hand-over: processes die", "LINKS=3 CRASHES=2 LIMIT", quick=True),
    handover("hand-over: an operator decides", "LINKS=3 CRASHES=2 LIMIT OPERATOR"),
    handover("hand-over: its job is cancelled", "LINKS=3 CANCEL LIMIT ENDS"),
    handover("hand-over: disks", "LINKS=2 DISKS OTHERS=1 LIMIT", quick=True),
    handover("hand-over: disks, an operator decides", "LINKS=2 DISKS OTHERS=1 CRASHES=2 CANCEL LIMIT ENDS OPERATOR"),
    handover("hand-over: the source learns how it ended", "LINKS=3 BREAKS=2", claim="settles"),
    # Under weak fairness, with guests that never come to rest.
    stop("whoever is held is released", f"C0=hold_all(0) C1=stop_machine(1,1) {ENDLESS}", claim="released", quick=True),
    stop("whoever is held is released, abort", f"C0=hold_all(0) NW=1 DEADLINE {ENDLESS}", claim="released"),
    stop("vCPUs get back into the guest", f"C0=hold_all(0);stop_machine(0,1) {ENDLESS}", claim="returns"),
    stop("vCPUs get back into the guest, abort", f"C0=hold_all(0);hold_all(0) DEADLINE {ENDLESS}", claim="returns"),
    stop("stops come to an end, with kicks", f"C0=hold_all(0) KICK {ENDLESS}", claim="rests"),
]

# The search for cycles does not look for deadlocks: each of these is run both ways.
MODELS = [
    variant
    for instance in MODELS
    for variant in ([replace(instance, ends=False), replace(instance, name=f"{instance.name}: no cycle")]
                    if instance.ends else [instance])
]

ROW = "C0=hold_all(0) C1=stop_machine(1,1)"
ANOTHER_STOP = violates("nobody_of_another_stop")
HOLD_LOST = violates("hold_keeps_the_guest_held")
BOTH_RUN = violates("one_side_runs")
NOT_HELD = violates("(callback_only_while_everybody_is_held|no_guest_code_during_a_callback)")

MUTANTS = [
    kick("CLEAR_AFTER_CHECK", finds=DEADLOCK, quick=True),
    kick("SIGNAL_BEFORE_QUEUE", finds=DEADLOCK),
    kick("EMPTY_HANDLER", finds=DEADLOCK),
    kick("WRITE_FROM_OUTSIDE", finds=DEADLOCK),
    kick("NO_COMPLETION", finds=violates("no_stop_inside_an_instruction")),
    kick("COMPLETE_ONCE", finds=violates("no_stop_inside_an_instruction")),
    stop("ONE_BARRIER", ROW, finds=ANOTHER_STOP, quick=True),
    stop("NEXT_STOP_DOES_NOT_WAIT", "C0=hold_all(0);hold_first(0);hold_all(0)",
         finds=violates("(nobody_of_another_stop|nobody_acknowledges_twice)")),
    stop("NO_EXIT_ACK", "C0=stop_machine(0,1);stop_machine(0,1)", finds=ANOTHER_STOP),
    stop("ACK_TWICE", "C0=stop_machine(0,1)", finds=NOT_HELD, quick=True),
    stop("ABORT_WITHOUT_EXCHANGE", "C0=stop_machine(0,1) DEADLINE", finds=NOT_HELD, quick=True),
    stop("ABORT_LEAVES_WORKS", "C0=hold_all(0);hold_all(0) STUCK=2 DEADLINE", finds=DEADLOCK),
    stop("NOT_DISOWNED", "C0=hold_all(0) DEADLINE", finds=DEADLOCK),
    stop("GATES_SHUT_AFTER_ABORT", "C0=hold_all(0) DEADLINE", finds=DEADLOCK),
    stop("GATES_SHUT_AFTER_ABORT", f"C0=hold_all(0) DEADLINE {ENDLESS}", claim="released", finds=CYCLE),
    stop("QUEUE_TWO_WITHOUT_LOCK", "C0=stop_machine(0,1) C1=stop_two(1,1,0,0,1) HAS_TWO=2", finds=DEADLOCK, quick=True),
    stop("IN_PROGRESS_IGNORED", "C0=stop_machine(0,1) C1=stop_two(1,1,0,0,1) HAS_TWO=2", finds=DEADLOCK),
    stop("LOCKS_UNORDERED", "C0=stop_two(0,0,1,0,1) C1=stop_two(1,1,0,0,1) HAS_TWO=2", finds=DEADLOCK),
    stop("SIGNAL_BEFORE_QUEUE", "C0=hold_all(0) KICK", finds=DEADLOCK),
    stop("COORDINATOR_STAYS_OUT", "C0=hold_all(0) PARKS=2", finds=DEADLOCK),
    stop("WORKERS_WITH_VCPUS", "C0=hold_all(0) NW=1", finds=violates("workers_held_after_vcpus")),
    stop("REST_IS_LET_BE", "C0=hold_all(0) NW=1", finds=NOT_HELD),
    stop("RISER_ACKS_TOO", "C0=hold_all(0) NW=1", finds=violates("nobody_acknowledges_twice")),
    stop("WORK_LEFT_AT_REST", "C0=hold_all(0) NW=1", finds=DEADLOCK),
    stop("VCPUS_RELEASED_FIRST", "C0=hold_all(0) NW=1", finds=violates("workers_released_before_vcpus")),
    stop("NO_WAKE_AT_EXIT", "C0=stop_machine(0,1)", finds=DEADLOCK),
    stop("NO_WAKE_AT_NONE", ROW, finds=DEADLOCK),
    stop("SLEEP_WITHOUT_COMPARE", "C0=hold_all(0)", finds=DEADLOCK),
    stop("PARK_WITHOUT_DRAIN", "C0=hold_all(0) PARKS=2", finds=DEADLOCK),
    stop("PARK_DISABLES_FIRST", "C0=hold_all(0) C1=stop_one(1) PARKS=2", finds=NOT_HELD),
    stop("UNPARK_WITHOUT_LOCK", "C0=hold_all(0) C1=unpark(1) OFFLINE=2", finds=NOT_HELD),
    service("RELEASED_BY_THE_FIRST", "RUNS=0 HOLDS=2", finds=HOLD_LOST),
    service("HOLD_AFTER_CLOSE", "RUNS=0 HOLDS=1 CLOSE", finds=violates("nobody_is_held_after_close"), quick=True),
    service("LEADER_GIVES_UP_WITH_STOP", "RUNS=2 HOLDS=1 DEADLINE=1", finds=HOLD_LOST),
    service("LEAD_IS_LOST", "RUNS=3 HOLDS=0 DEADLINE=1", finds=DEADLOCK),
    handover("HELD_TOO_LATE", finds=BOTH_RUN),
    handover("RESUMES_IN_DOUBT", finds=BOTH_RUN, quick=True),
    handover("STARTS_WHEN_ORPHANED", finds=BOTH_RUN),
    handover("ABANDONS_WHAT_RUNS", finds=BOTH_RUN),
    handover("STARTS_WITHOUT_DISKS", "DISKS OTHERS=1", finds=violates("runs_with_its_disks")),
    handover("GOES_ON_WITHOUT_DISKS", "DISKS OTHERS=1 LIMIT", finds=violates("runs_with_its_disks"), quick=True),
    handover("COMMITS_BEFORE_UNLOCKING", "DISKS", finds=violates("gives_up_for_a_reason")),
    handover("NEVER_DIALS_AGAIN", "LINKS=3 BREAKS=2", claim="settles", finds=CYCLE),
    handover("STARTED_IS_SILENT", "LINKS=3 BREAKS=2", claim="settles", finds=CYCLE),
    handover("GIVES_UP_IN_SILENCE", "LINKS=3 BREAKS=2", claim="settles", finds=f"{CYCLE}|assertion violated"),
]


def instance_text(instance, mutant):
    lines = [f"#define {key} {value}" for key, value in instance.defines.items()]
    if mutant:
        lines.append(f"#define MUTANT_{instance.name}")
    lines.append(f'#include "{HERE / instance.model}"')
    return "\n".join(lines) + "\n"


def build(instance, mutant, compiler, folder):
    """RETURNS: the verifier's path and arguments. Raises CalledProcessError."""
    (folder / "instance.pml").write_text(instance_text(instance, mutant))
    subprocess.run(["spin", "-a", "instance.pml"], cwd=folder, check=True, capture_output=True, text=True)
    # Not optimised: these verifiers take longer to be compiled well than to run.
    flags = ["-O0", "-w", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_LIMIT_MIB}", "-DVECTORSZ=2048"]
    arguments = [f"-m{MAX_DEPTH}"]
    if mutant and not instance.claim:  # the error that is expected, not another one that comes first
        arguments.append("-A" if instance.finds == DEADLOCK else "-E")
    if instance.claim:
        flags.append("-DNFAIR=3")  # fairness counts processes in words of 32 bits
        arguments += ["-a", "-f", "-N", instance.claim]
    elif instance.ends:
        flags += ["-DNOCLAIM", "-DNP"]
        arguments += ["-l"]  # nothing is labelled progress: any cycle is an error
    else:
        flags += ["-DNOCLAIM", "-DSAFETY"]
    subprocess.run([compiler, *flags, "-o", "pan", "pan.c"], cwd=folder, check=True, capture_output=True, text=True)
    return ["./pan", *arguments]


def verdict(instance, mutant, output):
    """RETURNS: what is wrong, or None."""
    found = "; ".join(re.findall(r"^pan:\d+: (.*)$", output, re.MULTILINE))
    errors = re.search(r"errors: (\d+)", output)
    if errors is None:
        return "the verifier gave no result"
    # Nothing may be cut off silently. ("Search not completed" is also said after an error, which stops the search.)
    cut = re.search(r"max search depth too small|out of memory|memory limit|VECTORSZ|truncated|hash factor", output)
    if cut is not None:
        return f"the search was not exhaustive: {cut.group(0)}"
    if mutant:
        if errors.group(1) == "0":
            return "the mutant was not found"
        return None if re.search(instance.finds, found) else f"expected '{instance.finds}', found '{found}'"
    if errors.group(1) != "0" or found:
        return found or "errors"
    if "Search not completed" in output:
        return "the search was not exhaustive"
    return None


searches = set()  # the verifiers that run


def search(command, folder):
    """Runs a verifier. CONTEXT: a worker's thread. RETURNS: what it printed. Raises TimeoutExpired."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as verifier:
        searches.add(verifier)
        try:
            return verifier.communicate(timeout=TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            verifier.kill()
            raise
        finally:
            searches.discard(verifier)


def end_searches(*_):
    """On SIGTERM: ends the verifiers, so that their folders go with us."""
    for verifier in list(searches):
        verifier.kill()
    sys.exit(1)


def check(instance, mutant, compiler, trace):
    """Runs one search. RETURNS: whether it came out as it should."""
    label = f"mutant {instance.name} ({instance.model})" if mutant else instance.name
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stopvisor-model.") as name:
        folder = Path(name)
        try:
            command = build(instance, mutant, compiler, folder)
            output = search(command, folder)
            wrong = verdict(instance, mutant, output)
            states = re.search(r"([\d.e+]+) states, stored", output)
            detail = f"{states.group(1) if states else '?'} states"
        except subprocess.CalledProcessError as error:
            wrong = f"{error.cmd[0]}: {(error.stdout or '') + (error.stderr or '')}".strip()[-2000:]
            detail = ""
        except subprocess.TimeoutExpired:
            wrong, detail = f"no result within {TIMEOUT_S} s", ""
        print(f"{'ok    ' if wrong is None else 'FAILED'} {label}: {wrong or detail}, "
              f"{time.monotonic() - begin:.1f} s", flush=True)
        if trace and list(folder.glob("*.trail")):
            replay = subprocess.run(["spin", "-t", "-p", "-g", "instance.pml"], cwd=folder, capture_output=True, text=True)
            print(replay.stdout)
    return wrong is None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller instances, less than 20 s")
    parser.add_argument("--trace", action="store_true", help="print the steps that lead to an error")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("name", nargs="*", help="part of the name of an instance or mutant")
    arguments = parser.parse_args()
    quick = arguments.quick or (os.environ.get("STOPVISOR_TEST_MODE") == "quick" and not arguments.name)
    signal.signal(signal.SIGTERM, end_searches)

    def chosen(instance):
        if arguments.name and not any(name in instance.name for name in arguments.name):
            return False
        return instance.quick or not quick

    # In the full run of tools/test the models are verified, and a few of the mutants stand for the rest.
    few_mutants = os.environ.get("STOPVISOR_TEST_MODE") == "full" and not arguments.name
    work = [(instance, False) for instance in MODELS if chosen(instance)]
    work += [(instance, True) for instance in MUTANTS if chosen(instance) and (instance.quick or not few_mutants)]
    left_out = len(MODELS) + len(MUTANTS) - len(work)
    if arguments.list:
        for instance, mutant in work:
            print(f"{'mutant ' if mutant else ''}{instance.name}")
        return 0
    if not work:
        print("run.py: no instance has such a name", file=sys.stderr)
        return 1
    compiler = next((c for c in (os.environ.get("CC", ""), "cc", "gcc", "clang") if c and shutil.which(c)), None)
    for tool, there in (("spin", shutil.which("spin")), ("a C compiler", compiler)):
        if not there:
            print(f"SKIPPED: {tool} is not installed; the models of the stop protocol were NOT verified", file=sys.stderr)
            print(f"0 passed, 0 failed, {len(work)} skipped")
            return 77
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        try:
            failed = sum(not good for good in pool.map(lambda one: check(*one, compiler, arguments.trace), work))
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise
    if left_out:
        print(f"skipped: {left_out} instances and mutants that were not asked for{' (--quick)' if quick else ''}")
    print(f"{len(work) - failed} passed, {failed} failed, {left_out} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
