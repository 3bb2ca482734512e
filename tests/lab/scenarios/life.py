# SPDX-License-Identifier: Apache-2.0
"""How a Linux guest's life goes: a shell on the console, restarts, a panic, and all the ways it ends."""

import json
import shlex

from guest import Machine, Ours


def run(lab, options, checks):
    flavour = (options.kernel or ["cloud"])[0]
    cpus = (options.cpus or [2])[0]
    checks.prefix = f"{flavour}, {cpus} vCPUs: "
    restarts(lab, options, checks, Machine(cpus, flavour, cmdline="panic=-1"))
    presses_the_button(lab, options, checks, Machine(cpus, flavour))
    gives_a_shell(lab, options, checks, Machine(cpus, flavour, driven=False))
    rests_after_a_panic(lab, options, checks, Machine(cpus, flavour, cmdline="panic=0"))


def status(guest):
    return json.loads(guest.must("status", "--json"))


def restarts(lab, options, checks, machine):
    """Each way to restart brings the same machine up again, in the same process."""
    guest = Ours.linux(lab, options, machine)
    guest.up()
    for number, (what, action) in enumerate([
            ("reboot", lambda: guest.type("reboot -f\n")),
            ("Ctrl-Alt-Del", lambda: guest.must("shutdown", "--ctrl-alt-del")),
            ("a panic with panic=-1", lambda: guest.type("echo c >/proc/sysrq-trigger\n"))], 1):
        action()
        checks.equal(f"{what} restarts the guest with all its vCPUs", guest.up().get("cpus"), str(machine.cpus))
        told = status(guest)
        checks.that(f"{what} is told in the status", told["resets"] == number and told["last_reset_by"],
                    f"resets {told['resets']}, by {told['last_reset_by']}")
    checks.that("the panic is told in the log", "panic" in guest.text().lower(), guest.text()[-500:])
    guest.type("poweroff -f\n")
    checks.equal("poweroff after restarts ends `run` with 0", guest.end().status, 0)


def presses_the_button(lab, options, checks, machine):
    guest = Ours.linux(lab, options, machine)
    guest.up()
    pressed = guest.command("shutdown", "--timeout", "300s", limit_s=330)
    checks.that("`shutdown` presses the power button, and the guest goes down", pressed.status == 0, pressed.output)
    checks.equal("then `run` ends with 0", guest.end().status, 0)
    checks.that("the guest's own script ran", "guest: power button" in guest.text(), guest.text()[-500:])


def gives_a_shell(lab, options, checks, machine):
    """A person's way: in the background, with `console VM`."""
    words = ["run", "--name", "guest", "--detach", *machine.words_of_run(options)]
    started = lab.run([options.stopvisor, *words])
    checks.that("`run --detach` starts it", started.status == 0, started.output)
    console = lab.ports[2]
    job = lab.start(f"exec {shlex.quote(options.stopvisor)} console guest <>/dev/lab-vm2 >&0")
    console.expect(r"guest# ", 300)
    console.send("echo $((6 * 7)) $(uname -s)\n")
    checks.that("a shell answers on `console VM`", console.expect(r"^42 Linux", 300))
    console.send("poweroff -f\n")
    checks.equal("the console ends with the VM, with 0", job.wait(300).status, 0)


def rests_after_a_panic(lab, options, checks, machine):
    guest = Ours.linux(lab, options, machine)
    guest.up()
    guest.type("echo c >/proc/sysrq-trigger\n")
    guest.expect(r"end Kernel panic", 300)
    told = guest.command("status", "--json")
    checks.that("a guest that rests after a panic can be looked at", told.status == 0, told.output)
    guest.kill()
    guest.end()
