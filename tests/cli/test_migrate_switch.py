# SPDX-License-Identifier: Apache-2.0
"""While the guest is handed over: who would change it is refused, and a destination that got everything and lost the
link hears that the guest went on where it was."""

import os
import threading

import vm_case
from migrate_case import MigrateCase
from migration_frames import COMMIT, PREPARED, STATE, WORD
from migration_proxy import Proxy, Step

MOVING = "the VM is being migrated to unix:"
NEVER_RAN = "the guest never ran here"


class Switch(MigrateCase):
    def stood_still(self, step):
        """A migration whose link stands still before `step`, and is cut there when `go_on` is set. Returns both sides, the
        proxy, `go_on` and the command, once it is there."""
        source = self.beating()
        destination, place = self.waiting()
        go_on = threading.Event()
        proxy = Proxy(os.path.join(self.runtime, "proxy"), place, step, True, lambda _: go_on.wait(vm_case.LIMIT_S))
        self.addCleanup(proxy.close)
        self.addCleanup(go_on.set)  # before that: it is waited for there
        # Time enough to look at it: the source waits ten times as long for a destination that does not get ready.
        command = self.migrating(source, "unix:" + proxy.path, "--max-downtime", "5s")
        self.assertTrue(proxy.reached.wait(vm_case.LIMIT_S))
        return source, destination, proxy, go_on, command

    def test_who_would_change_the_guest_is_refused_until_it_is_known_where_it_is(self):
        source, destination, _, go_on, command = self.stood_still(Step("prepared", WORD, word=PREPARED))
        place = vm_case.hex_gpa(0x3ff000)
        for words in (["poke", "source", place, "00", "--no-stop"], ["pause", "source"], ["resume", "source"]):
            with self.subTest(words[0]):
                self.assertIn(MOVING, self.refused(4, *words))
        self.assertIn("deadline passed", self.refused(4, "poke", "source", place, "00", "--timeout", "100ms"))
        go_on.set()
        command.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual(command.returncode, 1)
        self.beats_on(source)
        self.good("poke", "source", place, "00", "--no-stop")
        self.good("pause", "source")
        self.good("resume", "source")
        self.assertIsNone(self.first_wrong(source.output()))

    def test_a_destination_that_was_ready_hears_that_the_guest_goes_on_at_the_source(self):
        source, destination, proxy, go_on, command = self.stood_still(Step("prepared", WORD, word=PREPARED))
        go_on.set()
        errors = command.communicate(timeout=vm_case.LIMIT_S)[1]
        self.assertEqual(command.returncode, 1)
        self.assertIn("hung up", errors)
        self.beats_on(source)
        self.assertEqual(proxy.calls, 2)
        self.eventually(destination.ended, "its end")
        self.assertIn("the source took the guest back", destination.said())
        self.assertIn(NEVER_RAN, destination.said())

    def test_one_that_cannot_be_called_again_is_waited_for_a_few_seconds_alone(self):
        source, destination, proxy, go_on, command = self.stood_still(Step("prepared", WORD, word=PREPARED))
        proxy.open = False
        go_on.set()
        command.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual(command.returncode, 1)
        self.beats_on(source)
        self.eventually(lambda: destination.phase() == "orphaned", "it waits")
        proxy.open = True  # and another migration goes elsewhere
        other, place = self.waiting(name="other")
        self.good("migrate", "source", "unix:" + place)
        self.beats_on(other)
        self.assertEqual(destination.phase(), "orphaned")

    def test_a_destination_that_did_not_get_everything_is_not_called_for_long(self):
        source, destination, _, go_on, command = self.stood_still(Step("state", STATE))
        go_on.set()
        command.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual(command.returncode, 1)
        self.beats_on(source)
        self.eventually(destination.ended, "its end")
        self.assertIn(NEVER_RAN, destination.said())

    def test_a_destination_whose_end_was_asked_for_takes_no_guest_any_more(self):
        source = self.beating()
        destination, place = self.waiting()
        asked = []
        proxy = Proxy(os.path.join(self.runtime, "proxy"), place, Step("commit", WORD, word=COMMIT), True,
                      lambda _: asked.append(destination.ask("POST", "/v1/shutdown", {})))
        proxy.goes_on = True
        self.addCleanup(proxy.close)
        line = self.refused(1, "migrate", "source", "unix:" + proxy.path)
        self.assertIn("gave up before it ran the guest", line)
        self.assertIsNotNone(asked[0])
        self.beats_on(source)
        self.eventually(destination.ended, "its end")
        self.assertIn(NEVER_RAN, destination.said())
        self.assertIsNone(self.first_wrong(source.output()))

    def in_doubt(self):
        """A source that has said commit, which was lost, and cannot call again before the proxy is open."""
        source = self.beating()
        destination, place = self.waiting()
        proxy = Proxy(os.path.join(self.runtime, "proxy"), place, Step("commit", WORD, word=COMMIT), True,
                      lambda proxy: proxy.shut())
        self.addCleanup(proxy.close)
        command = self.migrating(source, "unix:" + proxy.path)
        self.eventually(lambda: source.migration() == "in-doubt", "it is in doubt")
        return source, destination, proxy, command

    def test_another_migration_does_not_take_the_operators_word_from_one_in_doubt(self):
        source, destination, _, command = self.in_doubt()
        self.assertIn("a live snapshot or a migration of it is under way",
                      self.refused(4, "migrate", "source", f"unix:{self.runtime}/other"))
        self.assertEqual(source.migration(), "in-doubt")
        destination.kill()
        self.good("migrate", "source", "--run-here")
        command.communicate(timeout=vm_case.LIMIT_S)
        self.beats_on(source)

    def test_one_in_doubt_that_is_cancelled_asks_for_its_guest(self):
        source, destination, proxy, command = self.in_doubt()
        job = source.ask("GET", "/v1/jobs")["jobs"][-1]["job"]
        self.assertIsNotNone(source.ask("POST", f"/v1/jobs/{job}/cancel"))
        self.eventually(lambda: source.migration() == "in-doubt", "it cannot call yet")
        proxy.open = True
        command.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual(command.returncode, 1)
        self.beats_on(source)
        self.eventually(destination.ended, "its end")
        self.assertIn(NEVER_RAN, destination.said())

    def test_a_path_is_that_of_the_folder_one_is_in(self):
        source = self.beating()
        destination, _ = self.waiting()
        self.good("migrate", "source", "unix:destination.in", cwd=self.runtime)
        self.beats_on(destination)


if __name__ == "__main__":
    vm_case.main()
