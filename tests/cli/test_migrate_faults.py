# SPDX-License-Identifier: Apache-2.0
"""A link that is cut, a source and a destination that are killed: at each message of a migration, just before it goes
on and just after. Whatever it is, the guest never runs at both sides, and where it runs at none somebody says so; then
what docs/howto/move-a-running-vm.md says lets it run, once. The witness is what the guest sends: each number once."""

import os
import time
import unittest

import migration_frames
import vm_case
from migrate_case import MigrateCase
from migration_proxy import Proxy, STEPS

MODE = os.environ.get("STOPVISOR_TEST_MODE", "quick")
REPEATS = 3 if MODE == "long" else 1
FEW = MODE == "quick" or "ASAN_OPTIONS" in os.environ  # set by tests/run.py
FAULTS = ("cut", "cut_for_a_while", "kill_source", "kill_destination")
NAMES = [step.name for step in STEPS]
NEVER_RAN = "the guest never ran here"


def has_come(to, step, before):
    """Whether the message called `to` has been delivered when the fault happens."""
    at, wanted = NAMES.index(step.name), NAMES.index(to)
    return at > wanted or at == wanted and not before


class MigrateFaults(MigrateCase):
    def fault(self, step, before, fault, variant):
        self.destination, place = self.waiting()
        self.source = self.beating()
        self.proxy = Proxy(os.path.join(self.runtime, "proxy"), place, step, before, getattr(self, fault))
        self.proxy.before_receipt = self.write_more
        self.addCleanup(self.proxy.close)
        self.place = place
        self.variant = variant
        self.may_repeat = False
        command = self.migrating(self.source, "unix:" + self.proxy.path)
        self.eventually(lambda: self.proxy.reached.is_set() or command.poll() is not None, f"somebody says {step.name}")
        self.assertTrue(self.proxy.reached.is_set(), f"it is over, and nobody said {step.name}")
        self.assertTrue(self.proxy.acted.wait(vm_case.LIMIT_S))
        source, destination = self.settle()
        self.check_one_side(step, before, fault, source, destination)
        winner = self.decide(source, destination)
        _, errors = command.communicate(timeout=vm_case.LIMIT_S)
        if winner is self.destination and fault != "kill_source":
            self.eventually(self.source.ended, "the source's end")
        self.assertEqual(command.returncode == 0, self.source.ended() and self.source.child.returncode == 0, errors)
        self.check_it_ran_once(winner, fault)

    # What happens at the message. CONTEXT: the proxy's thread.

    def write_more(self):
        """There is something to be sent in the last round: the guest has written memory since the first one."""
        self.beats_on(self.source, 20)

    def cut(self, proxy):
        proxy.cut()

    def cut_for_a_while(self, proxy):
        proxy.shut()

    def kill_source(self, _):
        self.source.kill()

    def kill_destination(self, _):
        self.destination.kill()

    # What comes of it.

    def settle(self):
        """Waits until nothing changes any more without somebody's word; returns what both sides say then."""
        limit = time.monotonic() + vm_case.LIMIT_S
        while True:
            source, destination = self.source.migration(), self.destination.phase()
            asks_nobody = not self.proxy.open or destination == "dead"
            if destination in ("dead", "waiting", "orphaned", "running") and (
                    source in ("dead", "gone", "here") or source == "in-doubt" and asks_nobody):
                return source, destination
            self.assertLess(time.monotonic(), limit, f"never settled: {source}, {destination}")
            time.sleep(0.005)  # between looks at other processes

    def check_one_side(self, step, before, fault, source, destination):
        """The rule, and what must have come of this fault, where that does not depend on who was quicker."""
        said = f"{source}, {destination}\n{self.source.said()}{self.destination.said()}"
        if source == "here":
            self.assertNotEqual(destination, "running", said)
        if source == "gone" and fault != "kill_destination":
            self.assertEqual(destination, "running", said)
        if source == "in-doubt":
            self.assertIn("it is in doubt whether", self.source.said())
        if destination == "orphaned":
            self.assertIn("the link to the source broke when all was ready", self.destination.said())
        if destination == "dead" and fault != "kill_destination":
            self.assertIn(NEVER_RAN, self.destination.said())
        # What goes the other way is let through while something is done after a message.
        answered = not before and step.name == "state"
        answered_by_source = not before and step.name == "prepared"
        if fault == "kill_source":
            if not answered_by_source:
                self.assertEqual(destination == "running", has_come("commit", step, before), said)
            if has_come("prepared", step, before) or step.name == "prepared":
                self.assertIn(destination, ("orphaned", "running"), said)
            return
        if answered:
            self.assertIn(source, ("here", "gone" if fault == "cut" else "in-doubt"), said)
        elif not has_come("prepared", step, before):
            self.assertEqual(source, "here", said)
        elif fault == "cut" or has_come("running", step, before):
            self.assertEqual(source, "gone", said)
        elif fault == "kill_destination" and step.name in ("prepared", "commit") and not before:
            self.assertIn(source, ("in-doubt", "gone"), said)  # it may have answered before it died
        else:
            self.assertEqual(source, "in-doubt", said)

    def decide(self, source, destination):
        """What the how-to says. Returns the side that runs the guest then, None where it is lost with its process."""
        if destination == "orphaned" and source == "dead":
            self.good("resume", "destination")
            self.eventually(lambda: self.destination.phase() == "running", "it runs when it is told to")
            return self.destination
        if destination == "orphaned" and source == "here":
            self.end_the_orphan()
        if source == "in-doubt":
            return self.decide_doubt(destination)
        if source == "here":
            return self.source
        return self.destination if destination == "running" else None

    def end_the_orphan(self):
        self.good("shutdown", "destination")
        self.eventually(self.destination.ended, "its end")
        self.assertEqual(self.destination.child.returncode, 0)
        self.assertIn(NEVER_RAN, self.destination.said())

    def decide_doubt(self, destination):
        choices = {"dead": [self.run_here],
                   "orphaned": [self.open_again, self.take_back, self.resume_there, self.end_there, self.ask_elsewhere],
                   "running": [self.open_again, self.drop, self.take_back_too_late, self.ask_elsewhere]}[destination]
        choice = choices[self.variant % len(choices)]
        self.decided = choice.__name__
        return choice()

    def run_here(self):
        self.may_repeat = True
        self.good("migrate", "source", "--run-here")
        return self.source_goes_on()

    def open_again(self):
        self.proxy.open = True
        return self.source_goes()

    def take_back(self):
        self.good("migrate", "source", "--take-back")
        self.proxy.open = True
        self.eventually(self.destination.ended, "the destination gives it back")
        self.assertIn(NEVER_RAN, self.destination.said())
        return self.source_goes_on()

    def take_back_too_late(self):
        self.good("migrate", "source", "--take-back", "unix:" + self.place)
        return self.source_goes()

    def resume_there(self):
        self.good("resume", "destination")
        self.eventually(lambda: self.destination.phase() == "running", "it runs when it is told to")
        return self.drop()

    def end_there(self):
        self.end_the_orphan()
        self.good("migrate", "source", "--run-here")
        return self.source_goes_on()

    def ask_elsewhere(self):
        self.good("migrate", "source", "--ask", "unix:" + self.place)
        return self.source_goes()

    def drop(self):
        self.good("migrate", "source", "--drop")
        return self.source_goes()

    def source_goes(self):
        self.eventually(lambda: self.source.migration() == "gone", "the source lets go")
        self.eventually(lambda: self.destination.phase() == "running", "the destination runs it")
        return self.destination

    def source_goes_on(self):
        self.eventually(lambda: self.source.migration() == "here", "the source goes on")
        return self.source

    def check_it_ran_once(self, winner, fault):
        if winner is not None:
            self.beats_on(winner)
        other = self.destination if winner is self.source else self.source
        self.eventually(lambda: other.ended() or other.phase() == "waiting", f"{other.name} has ended, or waits")
        for side in (self.source, self.destination):
            side.kill()
        here, there = self.source.output(), self.destination.output()
        if winner is self.source:
            self.assertIsNone(self.first_wrong(here))
            self.assertTrue(self.may_repeat or not there, there)
            return
        if fault == "kill_source":  # what it had not written yet went with it
            self.assertIsNone(self.first_wrong(here))
            begin = self.place_in_all(there) if there else 0
            self.assertTrue(not there or begin >= len(here), "some of it was sent at both sides")
            self.assertIsNone(self.first_wrong(there, begin))
            return
        self.assertIsNone(self.first_wrong(here + there))


def add(step, before, fault, number):
    name = f"test_{fault}_{'before' if before else 'after'}_{step.name.replace('-', '_')}"
    for repeat in range(REPEATS):
        def test(self, variant=number + repeat):
            self.fault(step, before, fault, variant)

        setattr(MigrateFaults, name + (f"_{repeat + 1}" if REPEATS > 1 else ""), test)


def add_all():
    number = 0
    for fault in FAULTS:
        for step in STEPS:
            for before in (True, False):
                number += 1
                if not FEW or step.kind == migration_frames.WORD and before == (number % 3 == 0):
                    add(step, before, fault, number)


add_all()

if __name__ == "__main__":
    vm_case.main()
