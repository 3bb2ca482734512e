# SPDX-License-Identifier: Apache-2.0
"""Guests in the outer machine, each with its console at one of the outer machine's ports."""

import re
import shlex
import time

from console import Missed

# noxsave: QEMU 7.2's SVM does not intercept XSETBV. KVM then never learns what the guest has enabled, and puts the
# old value back at its next entry: the guest's kernel would save too little of its tasks' registers.
CMDLINE = "console=ttyS0 quiet noxsave"
# Limits are for what hangs: on a host with other work a step takes several times as long as on an idle one.
UP_LIMIT_S = 300
END_LIMIT_S = 300
TIMEOUT_S = 60  # of the command's stops: the host emulates, and may be busy
STEP_S = 3  # between two looks at whether a machine that says nothing still runs


class Guest:
    """A machine with its console at a port, until it ends. The guest's shell takes commands one after another."""

    def __init__(self, lab, name, words, port=0):
        self.lab, self.name = lab, name
        self.console = lab.ports[port]
        self._begin = self.console.mark()
        command = " ".join(shlex.quote(str(word)) for word in words)
        self.job = lab.start(f"exec {command} <>/dev/lab-vm{port} >&0")

    def up(self, limit_s=UP_LIMIT_S):
        """Waits for the guest's first process. Returns what it said of its machine, by name."""
        said = self.expect(r"GUEST-UP ([^\r\n]*)\r?\n", limit_s)[1]
        self.expect(r"GUEST-READY", limit_s)
        return dict(pair.split("=", 1) for pair in said.split())

    def expect(self, pattern, limit_s):
        """Waits for the console's text to have `pattern`, as long as the machine runs. Returns the match."""
        until = time.monotonic() + limit_s
        ended = False
        while True:
            left = until - time.monotonic()
            try:
                return self.console.expect(pattern, min(max(left, 0), STEP_S))
            except Missed:
                if ended:
                    done = self.job.wait(0)
                    raise Missed(f"{self.name}: ended with {done.status} before /{pattern}/ came: "
                                 f"{done.output[-2000:]}") from None
                if left <= STEP_S:
                    raise
            ended = self.job.ended()  # then what it said last is looked at once more

    def text(self):
        """All that has come out of the console."""
        return self.console.since(self._begin).replace("\r", "")

    def shell(self, command, limit_s=300):
        """Runs a command in the guest. Returns its exit status and what it printed."""
        assert "\n" not in command, command
        mark = self.console.mark()
        self.type(command + "\n")
        try:
            status = int(self.expect(r"^@@(\d+)@@", limit_s)[1])
        except Missed as missed:
            raise Missed(f"in the guest: {command}: {missed}{self.autopsy()}") from None
        said = self.console.since(mark).replace("\r", "")
        return status, re.split(r"^@@\d+@@", said, maxsplit=1, flags=re.M)[0]

    def autopsy(self):
        """What can be learned of a machine that does not answer, for the message."""
        return ""

    def type(self, text):
        """Sends keys, and waits for nothing."""
        self.console.send(text)

    def end(self, limit_s=END_LIMIT_S):
        """Waits for the machine's process to end. Returns its Result; its messages are at the end of `text()`."""
        return self.job.wait(limit_s)


class Ours(Guest):
    """One run of the command `run`, behind the words of `inside` that say where."""

    def __init__(self, lab, options, name, words, port=0, inside=()):
        self.stopvisor = options.stopvisor
        super().__init__(lab, name, [*inside, self.stopvisor, "run", "--name", name, *words], port)

    @classmethod
    def linux(cls, lab, options, machine, name="guest", port=0, inside=()):
        return cls(lab, options, name, machine.words_of_run(options), port, inside)

    def words(self, *words):
        """The command with words behind it, as the outer machine's shell takes them."""
        return ["env", f"STOPVISOR_TIMEOUT={TIMEOUT_S}s", self.stopvisor, *words]

    def command(self, verb, *words, limit_s=TIMEOUT_S + 40):
        """Runs a verb of the command against this VM. Returns its Result."""
        return self.lab.run(self.words(verb, self.name, *words), limit_s)

    def must(self, verb, *words, limit_s=TIMEOUT_S + 40):
        """Runs a verb that has to succeed. Returns what it printed."""
        return self.lab.must(self.words(verb, self.name, *words), limit_s)

    def autopsy(self):
        text = []
        looks = [[self.stopvisor, verb, self.name] for verb in ("status", "regs", "guest")]
        looks += ["for t in /proc/$(pidof -s stopvisor)/task/*; do echo $(cat $t/comm $t/wchan) $(cut -d' ' -f3 $t/stat); done",
                  "dmesg | tail -n 12", "free -m"]
        for look in looks:
            try:
                done = self.lab.run(look, 20)
                text.append(f"\n-- {done.command}: {done.status}\n{done.output}")
            except (Missed, OSError) as missed:
                text.append(f"\n-- {look}: {missed}")
                break  # the outer machine has ended
        return "".join(text)

    def kill(self):
        """Ends it, whatever it does."""
        self.command("shutdown", "--now")


class Microvm(Guest):
    """The same machine under QEMU's `microvm`, on the same /dev/kvm: what ours is compared with."""

    @classmethod
    def linux(cls, lab, options, machine, name="peer", port=1):
        words = ["qemu-system-x86_64", "-M", "microvm,pit=off,pic=off,rtc=off,isa-serial=on", "-enable-kvm",
                 "-cpu", "host", "-smp", machine.cpus, "-m", machine.memory_mb, "-nodefaults", "-no-user-config",
                 "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", machine.kernel(options),
                 "-initrd", machine.initrd(options), "-append", machine.cmdline,
                 "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng"]
        for number, disk in enumerate(machine.disks):
            path, _, flags = disk.partition(",")
            words += ["-drive", f"id=d{number},file={path},format=raw,if=none"
                      + (",readonly=on,file.locking=off" if flags else ""),  # ours may read it too, and locks otherwise
                      "-device", f"virtio-blk-device,drive=d{number}"]
        for number, (tap, mac) in enumerate(machine.nets):
            words += ["-netdev", f"tap,id=n{number},ifname={tap},script=no,downscript=no,vhost=off",
                      "-device", f"virtio-net-device,netdev=n{number},mac={mac}"]
        return cls(lab, name, words, port)


class Machine:
    """What a Linux guest is made of, whoever runs it."""

    def __init__(self, cpus=1, flavour="cloud", memory_mb=512, cmdline="", disks=(), nets=(), words=(), programs=(),
                 driven=True, elf=False):
        self.cpus, self.flavour, self.memory_mb, self.disks = cpus, flavour, memory_mb, disks
        self.nets = nets  # (tap, address)
        self.elf = elf  # the kernel as an ELF vmlinux rather than a bzImage
        self.cmdline = f"{CMDLINE} {'lab.driven' if driven else ''} {cmdline}".strip()
        self.words, self.programs = words, programs

    def words_of_run(self, options):
        """The options of `stopvisor run`."""
        words = ["--cpus", self.cpus, "--memory", f"{self.memory_mb}M", "--kernel", self.kernel(options),
                 "--initrd", self.initrd(options), "--cmdline", self.cmdline]
        for disk in self.disks:
            words += ["--disk", disk]
        for tap, mac in self.nets:
            words += ["--net", f"tap={tap},mac={mac}"]
        return [*words, *self.words]

    def kernel(self, options):
        return options.images.vmlinux(self.flavour) if self.elf else options.images.kernel(self.flavour).image

    def initrd(self, options):
        return options.images.guest(self.flavour, self.programs)
