# SPDX-License-Identifier: Apache-2.0
"""A Linux kernel is patched while it runs under load: code, data, and with a vCPU caught inside what is changed."""

import json
import os
import re

from guest import Machine, Ours
from warnings_of_kernels import bad_lines

ROUNDS = {"quick": 5, "full": 20, "long": 200}  # or --stops; the longer it takes, the likelier the emulator's own fault
LOAD = ("stress-ng --quiet --cpu 2 --switch 1 --fork 1 --get 1 --sched other --temp-path /tmp "
        "</dev/null >/tmp/stress 2>&1 & stress=$!")
UID = 4242
PROGRAM = 0x400000  # where a program that is linked to a fixed place begins
RETURN_UID = bytes([0xB8]) + UID.to_bytes(4, "little") + b"\xc3"  # mov $UID, %eax; ret
ENDBR, NOP5, CALL = b"\xf3\x0f\x1e\xfa", b"\x0f\x1f\x44\x00\x00", b"\xe8"
PATIENT = ["--retries", "2000", "--timeout", "30s"]
REFUSED, BUSY, DRIFT = 3, 4, 5
TRIES = 100  # an idle vCPU may be woken by a timer just then
NO_ANSWER = "no answer in time"  # of a host that is busy, and not of a change that is under way


def run(lab, options, checks):
    machine = Machine((options.cpus or [2])[0], (options.kernel or ["cloud"])[0], 768, "lab.programs",
                      disks=[options.images.programs() + ",ro"],
                      programs=[("bin/uid_watch", os.path.join(options.programs, "lab_uid"))])
    guest = Ours.linux(lab, options, machine)
    guest.up(300)
    patcher = Patcher(lab, guest)
    caught_inside(checks, guest, patcher)
    twice = ambiguous(guest)
    checks.equal("the load starts", guest.shell(LOAD)[0], 0)
    getuid = system_call(checks, guest, patcher)
    again_and_again(checks, guest, patcher, getuid, options.stops or ROUNDS[options.mode])
    data(checks, guest, patcher)
    in_a_process(checks, guest, patcher)
    refusals(checks, guest, patcher, getuid, twice)
    taken_back_by_itself(checks, guest, patcher, getuid)
    still_loaded = guest.shell("kill -0 $stress; echo $?; cat /tmp/stress; kill $stress; wait $stress")[1]
    checks.equal("the load ran all the time, and did not complain", still_loaded.strip(), "0")
    checks.equal("no oops, no warning of a lockup", bad_lines(guest.shell("dmesg -r")[1]), [])
    checks.equal("nothing is left", json.loads(patcher.must("list", "--json"))["patches"], [])
    guest.kill()
    checks.equal("the VM ends", guest.end().status, 0)


class Patcher:
    """Patch files, and the verb."""

    def __init__(self, lab, guest):
        self.lab, self.guest, self.count = lab, guest, 0
        banner = json.loads(guest.must("guest", "--json"))["kernel"]["banner"]
        self.target = {"banner": banner}

    def file(self, name, *writes, **more):
        self.count += 1
        path = os.path.join(self.lab.work, f"patch{self.count}.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"format": 1, "name": name, "version": "1", "target": self.target, "writes": list(writes)} | more, file)
        return path

    def words(self, action, *words):
        return self.guest.words("patch", action, self.guest.name, *words)

    def run(self, action, *words):
        return self.lab.run(self.words(action, *words), 100)

    def must(self, action, *words):
        return self.lab.must(self.words(action, *words), 100)

    def bytes_at(self, address, count):
        return bytes.fromhex(json.loads(self.guest.must("peek", address, count, "--json"))["bytes"])


def code(at, before, after):
    return {"at": at, "kind": "code", "expect": before.hex(), "bytes": after.hex()}


def uid(guest):
    """What getuid(2) gives a program."""
    return guest.shell("id -ru")[1].strip()


def answers(guest, count):
    """The next answers of getuid(2) that differ from the one before, as a program sees them on all CPUs."""
    return [int(guest.console.expect(r"UID (\d+)\r?\n", 300)[1]) for _ in range(count)]


def system_call(checks, guest, patcher):
    """A patch that makes getuid(2) return another number: behind the room for a tracer's call, if there is one."""
    found = patcher.bytes_at("sym:__x64_sys_getuid", 32)
    skip = len(ENDBR) if found.startswith(ENDBR) else 0
    if found[skip:].startswith((NOP5, CALL)):
        skip += len(NOP5)
    file = patcher.file("getuid", code(f"sym:__x64_sys_getuid+{skip:#x}", found[skip:skip + len(RETURN_UID)], RETURN_UID))
    checked = patcher.run("check", file, *PATIENT)
    checks.that("a check of the patch says what it would do", checked.status == 0 and "getuid: nothing speaks against it" in
                checked.output, checked.output)
    checks.equal("and changes nothing", uid(guest), "0")
    return file


def again_and_again(checks, guest, patcher, getuid, rounds):
    wrong, holds, attempts = [], [], 0
    mark = guest.console.mark()
    guest.shell("uid_watch & watch=$!")
    guest.console.look_again(mark)  # it may speak before the shell does
    answers(guest, 1)
    for number in range(rounds):
        stacks = ["--stacks"] if number % 2 else []
        done = json.loads(patcher.must("apply", getuid, *PATIENT, *stacks, "--json"))
        attempts = max(attempts, done["cost"]["attempts"])
        holds.append(done["cost"]["work_ns"] // 1000)
        patched = answers(guest, 1)
        patcher.must("revert", "getuid", *PATIENT)
        original = answers(guest, 1)
        if (patched, original) != ([UID], [0]):
            wrong.append((number, patched, original))
    guest.shell("kill $watch")
    checks.equal(f"{rounds} times getuid() gives {UID} with the patch and 0 without (our work under the stop: "
                 f"median {sorted(holds)[len(holds) // 2]} us; most attempts: {attempts})", wrong, [])


def data(checks, guest, patcher):
    """What uname(2) gives is data of the kernel."""
    where = patcher.bytes_at("sym:init_uts_ns", 390).find(b"Linux\0")
    checks.that("the kernel's name is found in its data", where >= 0)
    at = f"sym:init_uts_ns+{where:#x}"
    file = patcher.file("name", {"at": at, "kind": "data", "expect": b"Linux".hex(), "bytes": b"Lynux".hex()},
                        require=[{"at": at, "size": 1, "is": "eq", "value": ord("L")}],
                        ensure=[{"at": at, "size": 2, "is": "eq", "value": int.from_bytes(b"Ly", "little")}])
    patcher.must("apply", file)
    checks.equal("uname -s with a patch of data", guest.shell("uname -s")[1].strip(), "Lynux")
    patcher.must("verify")
    guest.must("poke", at, b"Lznux".hex())
    drift = patcher.run("revert", "name")
    checks.that("where others wrote since, a revert is status 5 and shows all three",
                drift.status == DRIFT and "originally 4c 69 6e 75 78, written 4c 79 6e 75 78, found 4c 7a 6e 75 78" in drift.output,
                drift.output)
    guest.must("poke", at, b"Lynux".hex())
    patcher.must("revert", "name")
    checks.equal("uname -s without it", guest.shell("uname -s")[1].strip(), "Linux")


def in_a_process(checks, guest, patcher):
    """Data of one process, by its number: a byte of its ELF header's that nobody uses, as the process itself has it."""
    guest.shell("uid_watch >/dev/null & watch=$!")
    process = int(guest.shell("echo $watch")[1])
    guest.shell("while [ $(cat /proc/$watch/comm) != uid_watch ]; do :; done")  # until then it is a copy of the shell
    byte = PROGRAM + 9  # e_ident's padding

    def seen():
        return guest.shell(f"dd if=/proc/{process}/mem bs=1 skip={byte} count=1 2>/dev/null | od -An -tx1")[1].strip()

    def patch(number):
        return patcher.file("process", {"at": f"gva:{byte:#x}@pid={number}", "kind": "data", "expect": "00", "bytes": "2a"})

    checks.equal("a process has its own bytes", seen(), "00")
    refused = patcher.run("apply", patch(process))
    checks.that("what a process may not write itself is refused", refused.status == REFUSED and
                "cannot be written" in refused.output, refused.output)
    patcher.must("apply", patch(process), "--force", "rights")
    checks.equal("a process has what was written for its number", seen(), "2a")
    patcher.must("revert", "process", "--force", "rights")
    checks.equal("and has it no more", seen(), "00")
    guest.shell("kill $watch")
    for number, words in ((2, "kernel thread"), (4_000_000, "there is no process 4000000")):
        done = patcher.run("apply", patch(number))
        checks.that(f"process {number}: {words}", done.status == REFUSED and words in done.output, done.output)


def ambiguous(guest):
    """A function's name that the kernel has more than once."""
    names = "grep -E ' [tT] ' /proc/kallsyms | grep -v '\\[' | awk '{print $3}' | sort | uniq -d | head -n 1"
    return guest.shell(names, 300)[1].strip()  # 90,000 lines through a software CPU


def refusals(checks, guest, patcher, getuid, twice):
    def refused(what, file, words):
        done = patcher.run("apply", file)
        checks.that(f"{what} is refused by name", done.status == REFUSED and words in done.output, done.output)

    write = {"kind": "data", "expect": "00", "bytes": "01"}
    refused("a symbol that is not there", patcher.file("x", {"at": "sym:no_such_symbol", **write}), "no_such_symbol")
    refused(f"one that is there twice ({twice})", patcher.file("x", {"at": f"sym:{twice}", **write}), twice)
    refused("an address that is not mapped", patcher.file("x", {"at": "gva:0xffff800000000000@kernel", **write}), "is not mapped")
    refused("code that cannot be written as data", patcher.file("x", {"at": "sym:__x64_sys_getuid", **write}), "expected 00")
    with open(getuid, encoding="utf-8") as file:
        other = json.load(file)
    other["target"] = {"banner": "Linux version 1.0"}
    refused("a patch for another kernel", patcher.file("x", *other["writes"], target=other["target"]), "another kernel")
    checks.equal("and nothing of it was written", uid(guest), "0")


def taken_back_by_itself(checks, guest, patcher, getuid):
    patcher.must("apply", getuid, *PATIENT, "--confirm-within", "1s")
    guest.shell("while [ $(id -ru) != 0 ]; do :; done")
    while json.loads(patcher.must("list", "--json"))["patches"]:  # the bytes are back before the ledger says so
        pass
    checks.that("what is not confirmed in time is taken back by itself", written_down(patcher))


def written_down(patcher):
    """Whether the history says so, which it does a moment after the patch is off the list."""
    for _ in range(TRIES):
        if json.loads(patcher.must("list", "--json"))["history"][-1]["what"] == "revert: not confirmed in time":
            return True
    return False


def caught_inside(checks, guest, patcher):
    """Idle vCPUs stand behind their HLT. A patch of that instruction and the next has them inside its window."""
    refused = None
    for _ in range(TRIES):
        cpus = json.loads(guest.must("regs", "--json"))["cpus"]
        if any(cpu["state"] != "halted" or not cpu["symbol"] for cpu in cpus):
            continue
        symbol, _, offset = cpus[0]["symbol"].partition("+")
        at = f"sym:{symbol}+{int(offset, 16) - 1:#x}"
        found = patcher.bytes_at(at, 2)
        file = patcher.file("idle", code(at, found, found))  # what it writes is what is there
        refused = patcher.run("apply", file)
        if refused.status != 0:
            break
        patcher.must("revert", "idle", *PATIENT)
    checks.that("with a vCPU inside the window a patch is status 4 and says where", refused is not None and
                refused.status == BUSY and re.search(r"vCPU \d is at gva:0x[0-9a-f]+, inside its window", refused.output),
                refused and refused.output)
    for _ in range(TRIES):
        done = begun_and_left(guest, patcher, file)
        attempts = json.loads(done.output)["cost"]["attempts"] if done.status == 0 else 0
        if done.status == 0:
            patcher.must("revert", "idle", *PATIENT)  # while they are not inside
        guest.shell("killall sh")
        if attempts != 1:
            break
    checks.that(f"which succeeds on a retry once they have left (attempt {attempts})", attempts > 1, done.output)


def begun_and_left(guest, patcher, file):
    """A change is begun while vCPUs stand inside its window, which they leave for loops when it is under way. Returns its
    Result; it has one attempt where no vCPU was there just then."""
    retrying = patcher.lab.start(patcher.words("apply", file, "--retries", "10000", "--timeout", "60s", "--json"))
    while not retrying.ended():
        asked = patcher.run("revert", "other", "--timeout", "50ms")
        if asked.status == BUSY and NO_ANSWER not in asked.output:
            break
    guest.shell("for n in 1 2 3 4; do sh -c 'while :; do :; done' & done 2>/dev/null")
    return retrying.wait(90)
