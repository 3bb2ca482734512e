# SPDX-License-Identifier: Apache-2.0
"""A guest under load moves to and fro between two hosts, and neither it nor its peer on the network notices."""

import json
import os
import time

from console import Missed
from far_network import NEAR, configure, programs, said_by
from guest import Machine, Ours
from load import Load
from scenarios.patch import PATIENT, UID, Patcher, system_call, uid
from scenarios.snapshot import WATCHDOG_S, comes_to_its_end
from two_hosts import TwoHosts

MIGRATIONS = {"quick": 2, "full": 3, "long": 20}  # or --stops
# The link, and options of `migrate`: they take turns, from the one host as from the other.
KINDS = (("unix", []), ("lossy tcp", ["--streams", "2"]), ("tcp", ["--compress", "zstd"]),
         ("lossy tcp", ["--compress", "zstd"]), ("unix", ["--streams", "4"]))
DOWNTIME = "500ms"  # that it is held for: a software CPU sends little in the 50 ms that are asked for elsewhere
TIME_LIMIT_S = 300
MAC = "02:00:00:00:00:02"
PORT = 5001
ENOUGH = "/tmp/enough"


def run(lab, options, checks):
    cpus, flavour = (options.cpus or [2])[0], (options.kernel or ["cloud"])[0]
    hosts = TwoHosts(lab)
    lab.must("truncate -s 32M /tmp/raw.img; truncate -s 128M /tmp/data.img; mkfs.ext4 -q /tmp/data.img")
    guest = Ours.linux(lab, options, Machine(
        cpus, flavour, 256, f"lab.programs watchdog_thresh={WATCHDOG_S}",
        disks=[options.images.programs() + ",ro", "/tmp/raw.img", "/tmp/data.img"], nets=[(hosts.tap(0), MAC)],
        programs=[("bin/clock_check", os.path.join(options.programs, "lab_clock")), *programs(options)]),
        TwoHosts.HOSTS[0], 0, hosts.words(0))
    guest.up(300)
    checks.that("the guest has a network device", configure(guest))
    load = Load(guest, checks)
    load.start()
    patcher = Patcher(lab, guest)
    patcher.must("apply", system_call(checks, guest, patcher), *PATIENT)
    guest.shell(f"net_stream echo {PORT} >/tmp/net 2>&1 & net_job=$!")
    talk = hosts.peer("talk", NEAR, PORT, options.seed, ENOUGH)
    load.keep_passing(4)
    journey = Journey(lab, options, checks, hosts, load, patcher)
    for number in range(options.stops or MIGRATIONS[options.mode]):
        checks.prefix = f"{flavour}, {cpus} vCPUs, migration {number}: "
        journey.go_on(number)
    checks.prefix = f"{flavour}, {cpus} vCPUs, after {journey.moves} migrations: "
    lab.must(f"touch {ENOUGH}")
    said = said_by(talk, TIME_LIMIT_S)
    checks.that(f"the peer has of its one TCP connection back what it sent: {said}",
                said.startswith("same ") and said != "same 0", said)
    checks.equal("which the guest saw end as it should", load.guest.shell("wait $net_job")[0], 0)
    load.passed(TIME_LIMIT_S)
    patcher.must("revert", "getuid", *PATIENT)
    checks.equal("its patch can be reverted", uid(load.guest), "0")
    comes_to_its_end(lab, checks, load, "/tmp/data.img")


class Journey:
    """One guest, and where it is."""

    def __init__(self, lab, options, checks, hosts, load, patcher):
        self.lab, self.options, self.checks, self.hosts = lab, options, checks, hosts
        self.load, self.patcher = load, patcher
        self.at, self.moves = 0, 0
        self.announced = hosts.peer("rarp", MAC)
        self.await_job(self.announced, lambda: "listening" in self.announced.output())

    def go_on(self, number):
        """Moves the guest to the other host."""
        source, there = self.load.guest, 1 - self.at
        link, words = KINDS[number % len(KINDS)]
        place, safe = self.place(link, number, there)
        watcher = self.lab.start(source.words("console", source.name, "--no-input"))
        target = Ours(self.lab, self.options, TwoHosts.HOSTS[there],
                      ["--incoming", place, *safe, "--net", f"0={self.hosts.tap(there)}"], there, self.hosts.words(there))
        self.await_job(target.job, lambda: self.lab.run(target.words("status", target.name)).status == 0)
        self.await_job(watcher, lambda: self.hears(watcher, source))
        announced = self.announcements()
        clock = Clock(source)
        lossy = link.startswith("lossy") and self.spoiled()
        done = self.lab.run([*source.words("migrate", source.name, place), *safe, *words, "--max-downtime", DOWNTIME,
                             "--timeout", f"{TIME_LIMIT_S}s", "--json"], TIME_LIMIT_S + 100)
        if lossy:
            self.hosts.mend()
        if done.status != 0:
            raise Missed(f"migrate over {link}: status {done.status}: {done.output}; the destination: {target.job.output()}")
        self.arrived(source, target, watcher, place, f"over {' '.join([link, *words])}, {figures(done.output)}")
        self.load.guest = self.patcher.guest = target
        self.at, self.moves = there, self.moves + 1
        self.load.one_more("the pass over its disks amid which it moved comes to its end", TIME_LIMIT_S)
        self.checks.that("where its address is now was announced", self.announcements() > announced)
        clock.check(self.checks, target, json.loads(done.output)["downtime_us"] / 1e6)
        verified = self.patcher.run("verify")
        self.checks.that("its patch is there as it was", verified.status == 0, verified.output)
        self.checks.equal("and does what it did", uid(target), str(UID))

    def place(self, link, number, there):
        """Where the destination waits, and what both sides need to be told for it."""
        if link == "unix":
            return f"unix:/run/move{number}.in", []
        return f"tcp://{self.hosts.address(there)}:{4000 + number}", ["--insecure"]

    def await_job(self, job, ready):
        """Until the job is as far as `ready` asks for."""
        until = time.monotonic() + TIME_LIMIT_S
        while not ready():
            if job.ended() or time.monotonic() > until:
                raise Missed(f"{job.command}: {'ended' if job.ended() else 'is not ready in time'}: {job.output()}")
            self.lab.run("true")

    @staticmethod
    def hears(watcher, guest):
        """Whether what the guest says comes out of a console that is being attached."""
        guest.shell("echo heard")
        return "heard" in watcher.output()

    def announcements(self):
        return self.announced.output().count("announced")

    def spoiled(self):
        """Makes the link between the hosts one with delay and loss. Returns whether it is."""
        why = self.hosts.spoil()
        if why:
            self.checks.skip("over a link with delay and loss", why)
        return not why

    def arrived(self, source, target, watcher, place, how):
        self.checks.equal(f"it moves {how}", json.loads(target.must("status", "--json"))["state"], "running")
        ended = source.end()
        self.checks.that("its process at the source ends with 0", ended.status == 0, ended.output)
        last = watcher.wait(TIME_LIMIT_S)
        self.checks.that("a console that was attached there says where it went, and ends with 0",
                         last.status == 0 and f"{source.name} goes on at {place}" in last.output, last.output[-500:])


class Clock:
    """The guest's clock goes on where it was: it may lack the time in which it was held, and no more."""

    SLACK_S = 1.0

    def __init__(self, guest):
        self.begin = time.monotonic()
        self.then = self.uptime(guest)
        self.read = time.monotonic()

    @staticmethod
    def uptime(guest):
        return float(guest.shell("cut -d ' ' -f 1 /proc/uptime")[1])

    def check(self, checks, guest, held_s):
        at_least = time.monotonic() - self.read - held_s - self.SLACK_S
        gone = self.uptime(guest) - self.then
        at_most = time.monotonic() - self.begin + self.SLACK_S
        checks.that("its clock has no jump", at_least <= gone <= at_most,
                    f"{gone:.2f} s have gone there, at least {at_least:.2f} and at most {at_most:.2f} here")


def figures(output):
    done = json.loads(output)
    return (f"{done['total_us'] / 1e6:.1f} s, {done['rounds_made']} rounds, {done['bytes'] / 2 ** 20:.0f} MiB, slowed by "
            f"{done['slowing_stops']} stops, and was held for {done['downtime_us'] / 1e3:.0f} ms")
