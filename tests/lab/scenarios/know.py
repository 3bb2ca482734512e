# SPDX-License-Identifier: Apache-2.0
"""What is known of a Linux guest, under KASLR, is what the guest says of itself: symbols, build ID, tasks, panic."""

import json
import re
import shlex
import struct

from guest import Machine, Ours
from outer import say

LINKED_TO = 0xFFFFFFFF81000000  # where _text of every distribution's kernel is before KASLR
# Functions and data that are in each kernel once, from its beginning to its end.
SAMPLES = ["_text", "linux_banner", "init_task", "init_top_pgt", "schedule", "vfs_read", "panic", "kernel_init"]
BANNER_BYTES = 64
LOOKS = 200  # until each vCPU was seen in its loop, or halted: few are enough unless something else runs just then
NT_GNU_BUILD_ID = 3  # an ELF note's type


def run(lab, options, checks):
    machines = [Machine(cpus, flavour) for flavour, cpus in [("cloud", 1), ("cloud", 4), ("amd64", 2)]
                if flavour in (options.kernel or [flavour])]
    # All at once: while one is looked at the others boot.
    guests = [(machine, Ours.linux(lab, options, machine, f"guest{port}", port))
              for port, machine in enumerate(machines)]
    slides = []
    for machine, guest in guests:
        checks.prefix = f"{machine.flavour}, {machine.cpus} vCPUs: "
        guest.up(300)
        slides.append(one_guest(checks, guest, machine.cpus))
    checks.prefix = ""
    say("  slides: " + ", ".join(f"{slide:#x}" for slide in slides))
    checks.that("KASLR moved the kernels, and not all alike", any(slides) and len(set(slides)) > 1, slides)


def one_guest(checks, guest, cpus):
    own = kallsyms(guest, SAMPLES)
    seen = facts(guest)
    identity(checks, guest, seen["kernel"], own)
    symbols(checks, guest, own)
    checks.equal("it has not panicked", seen["panic"], {"panicked": False, "cpu": None})
    busy(checks, guest, cpus)
    uptime(checks, guest)
    panic(checks, guest, cpus)
    guest.kill()
    guest.end()
    return seen["kernel"]["slide"]


def facts(guest):
    return json.loads(guest.must("guest", "--json"))


def kallsyms(guest, names):
    """Addresses of these symbols as the guest's root sees them."""
    return dict(all_of(guest, names))


def all_of(guest, names):
    """(name, address) of each symbol of such a name: static functions may share one."""
    _, text = guest.shell(f"grep -wE '{'|'.join(names)}' /proc/kallsyms")
    return [(name, int(address, 16)) for address, name in re.findall(r"^([0-9a-f]{16}) \S ([\w.]+)$", text, re.M)]


def build_id(guest):
    """The kernel's own, from the ELF notes in /sys (Linux, Documentation/ABI/testing/sysfs-kernel-notes)."""
    notes = bytes.fromhex(re.sub(r"\s", "", guest.shell("od -An -v -t x1 /sys/kernel/notes")[1]))
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        data_at = name_at + (name_size + 3) // 4 * 4
        if kind == NT_GNU_BUILD_ID and notes[name_at:name_at + name_size] == b"GNU\0":
            return notes[data_at:data_at + size].hex()
        at = data_at + (size + 3) // 4 * 4
    return None


def identity(checks, guest, kernel, own):
    checks.equal("the banner", kernel["banner"], guest.shell("cat /proc/version")[1].strip())
    checks.equal("the release", kernel["release"], guest.shell("uname -r")[1].strip())
    checks.equal("the build ID", kernel["build_id"], build_id(guest))
    checks.equal("the text is where the guest's root sees it", kernel["text"], own.get("_text"))
    checks.equal("the slide", kernel["slide"], own.get("_text", 0) - LINKED_TO)
    checks.equal("nothing contradicts", kernel["contradicted"], [])
    checks.that("slide and build ID are verified", {"linux_banner", "vmcoreinfo slide", "vmcoreinfo build ID"} <=
                set(kernel["verified"]), kernel["verified"])


def symbols(checks, guest, own):
    checks.equal("the guest has the symbols that are compared", sorted(own), sorted(SAMPLES))
    names = sorted(set(own) - {"init_task"})  # whose times go on
    checks.equal("what lies at sym: addresses lies there by /proc/kallsyms",
                 peeks(guest, [f"sym:{name}" for name in names]),
                 peeks(guest, [f"gva:{own[name]:#x}" for name in names]))
    shown = guest.must("peek", "sym:linux_banner", BANNER_BYTES)
    checks.that("`peek VM sym:linux_banner 64` shows it", "Linux version" in shown, shown)


def peeks(guest, addresses):
    command = shlex.join(guest.words("peek", guest.name))
    return guest.lab.must(f"set -e; for at in {' '.join(addresses)}; do {command} $at {BANNER_BYTES}; done")


def busy(checks, guest, cpus):
    """A loop on each vCPU: what each look shows is consistent, and after a few looks all loops were seen."""
    _, said = guest.shell(f"for n in $(seq 0 {cpus - 1}); do taskset -c $n sh -c 'while :; do :; done' & "
                          "echo LOOP $n $!; done 2>/dev/null")
    loops = {int(cpu): int(pid) for cpu, pid in re.findall(r"LOOP (\d+) (\d+)", said)}
    checks.equal("a loop runs on each vCPU", sorted(loops), list(range(cpus)))
    found, wrong = {}, []
    for _ in range(LOOKS):  # nobody tells us when a guest's task runs
        for vcpu in facts(guest)["vcpus"]:
            task = vcpu["task"]
            if task is None or (task["pid"] == 0 and task["comm"] != f"swapper/{vcpu['linux_cpu']}"):
                wrong.append(vcpu)
            elif task["pid"] == loops.get(vcpu["linux_cpu"]):
                found[vcpu["linux_cpu"]] = (task["comm"], task["tid"] == task["pid"])
        if len(found) == cpus:
            break
    checks.equal("each vCPU's task is the loop there", found, {cpu: ("sh", True) for cpu in range(cpus)})
    checks.equal("and in no look was one unknown, or an idle task another CPU's", wrong[:2], [])
    places(checks, guest, cpus)


def places(checks, guest, cpus):
    """`regs` and `status` show state, CPL, symbol and CR3; a symbol is the one the guest has at RIP."""
    registers = json.loads(guest.must("regs", "--json"))["cpus"]
    checks.equal("regs shows each vCPU", [cpu["cpu"] for cpu in registers], list(range(cpus)))
    checks.that("with a state, a CPL and a CR3", all(
        cpu["state"] in ("guest", "host", "halted") and cpu["cpl"] in (0, 3) and cpu["cr3"] for cpu in registers),
                registers)
    status = json.loads(guest.must("status", "--json"))["vcpus"]
    checks.that("status too", len(status) == cpus and all(
        {"cpl", "cr3", "rip", "symbol"} <= set(cpu) for cpu in status), status)
    guest.shell("killall sh")
    named = {cpu["symbol"]: cpu["rip"] for cpu in [*registers, *idle(checks, guest)] if cpu["symbol"]}
    own = all_of(guest, {symbol.partition("+")[0] for symbol in named})
    wrong = {symbol: hex(rip) for symbol, rip in named.items()
             if (symbol.partition("+")[0], rip - int(symbol.partition("+")[2] or "0", 16)) not in own}
    checks.equal("the symbol at RIP is the guest's own", wrong, {})


def idle(checks, guest):
    for _ in range(LOOKS):
        registers = json.loads(guest.must("regs", "--json"))["cpus"]
        if all(cpu["state"] == "halted" for cpu in registers):
            break
    checks.that("without work each vCPU is halted in the kernel, at a symbol", all(
        cpu["state"] == "halted" and cpu["cpl"] == 0 and cpu["symbol"] for cpu in registers), registers)
    return registers


def uptime(checks, guest):
    def own():
        return float(guest.shell("cat /proc/uptime")[1].split()[0])

    before, seen, after = own(), facts(guest)["uptime_s"], own()
    # Whole seconds, and as of the last tick: one that sleeps is late.
    checks.that(f"the uptime: {before} s, {seen} s, {after} s", before - 3 < seen <= after)


def panic(checks, guest, cpus):
    guest.type("echo c >/proc/sysrq-trigger\n")
    guest.expect(r"end Kernel panic", 300)
    told = facts(guest)["panic"]
    checks.that("after a panic, `guest` tells of it and of the CPU",
                told["panicked"] and told["cpu"] in range(cpus), told)
    status = json.loads(guest.must("status", "--json"))
    checks.that("and `status` too", status["panicked"] and status["panics"] == 1, status)
