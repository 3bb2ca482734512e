# SPDX-License-Identifier: Apache-2.0
"""A running guest is moved: over each kind of link, in each way there is, and goes on as if nothing had been; one that
is not to go, goes on where it is."""

import json
import os
import signal
import socket
import subprocess
import unittest

import vm_case
from migrate_case import MigrateCase, Side
from vm_case import hex_gpa

LONG = os.environ.get("STOPVISOR_TEST_MODE") == "long"
TURNS = 20 if LONG else 4
FREE = 0x800000  # memory that the probe guest does not touch


class Migrate(MigrateCase):
    def arrived(self, source, destination):
        """It is there, all of it, once; and nothing is left of it here."""
        self.beats_on(destination)
        self.eventually(source.ended, "the source's end")
        self.assertEqual(source.child.returncode, 0, source.said())
        self.assertIsNone(self.first_wrong(source.output() + destination.output()))
        self.assertEqual([name for name in self.left_behind() if name.startswith(source.name + ".")], [])

    def place_of(self, side):
        return side.ask("GET", "/v1/status")["incoming"]["place"]

    # The links.

    def test_over_a_unix_socket(self):
        source = self.beating()
        destination, place = self.waiting()
        said = self.good("migrate", "source", "unix:" + place)
        self.assertRegex(said, r"^source: runs at unix:\S+; it was held for [\d.]+ \S+, all took [\d.]+ \S+, \d+ rounds, .* sent\n$")
        self.arrived(source, destination)
        self.eventually(lambda: f"it came from source (unix:{place})" in destination.said(), "its word")
        self.good("shutdown", "destination", "--now")
        self.eventually(destination.ended, "its end")
        self.assertEqual(destination.child.returncode, 0)
        self.assertFalse(os.path.exists(place))
        self.assertEqual(self.left_behind(), [])

    def test_over_tcp_of_this_host(self):
        for number, uri in enumerate(("tcp://127.0.0.1:0", "tcp://[::1]:0")):
            with self.subTest(uri):
                source = self.beating(f"s{number}")
                destination = Side(self, f"d{number}", "--incoming", uri)
                self.good("migrate", source.name, self.place_of(destination))
                self.arrived(source, destination)

    def test_through_a_command(self):
        source = self.beating()
        destination, place = self.waiting()
        relay = ("import os, socket, sys, threading; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
                 "def out():\n  while (d := s.recv(65536)): os.write(1, d)\n  os.close(1)\n"
                 "threading.Thread(target=out, daemon=True).start()\n"
                 "while (d := os.read(0, 65536)): s.sendall(d)")
        script = os.path.join(self.runtime, "relay.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(relay)
        self.good("migrate", "source", f"exec:python3 {script} {place}")
        self.arrived(source, destination)

    def test_into_a_destination_that_the_source_starts(self):
        source = self.beating()
        serial = os.path.join(self.runtime, "there.serial")
        self.good("migrate", "source",
                  f"exec:'{vm_case.STOPVISOR}' run --incoming stdio: --name there --serial file:{serial}")
        self.pids.append(self.status("there")["pid"])
        self.eventually(source.ended, "the source's end")
        self.assertEqual(source.child.returncode, 0)
        self.eventually(lambda: os.path.getsize(serial) > 100, "it beats there")
        self.good("shutdown", "there", "--now")
        self.eventually(lambda: not vm_case.alive(self.pids[-1]), "its end")
        with open(serial, "rb") as file:
            self.assertIsNone(self.first_wrong(source.output() + file.read()))

    def test_over_a_descriptor_that_both_inherit(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for end in (ours, theirs):
                end.set_inheritable(True)
            source = Side(self, "source", *self.guest_of_beats(), close_fds=False)
            destination = Side(self, "destination", "--incoming", f"fd:{theirs.fileno()}", close_fds=False)
            self.beats_on(source)
            self.good("migrate", "source", f"fd:{ours.fileno()}")
            self.arrived(source, destination)

    # The ways.

    def test_with_each_option(self):
        ways = (["--streams", "3"], ["--compress", "zstd"], ["--bandwidth", "100M"], ["--max-downtime", "500ms"],
                ["--streams", "2", "--compress", "zstd", "--timeout", "100s"])
        for number, options in enumerate(ways):
            with self.subTest(options):
                source = self.beating(f"s{number}")
                destination, place = self.waiting(name=f"d{number}")
                done = json.loads(self.good("migrate", source.name, "unix:" + place, "--json", *options))
                self.arrived(source, destination)
                self.assertEqual((done["vm"], done["to"]), (source.name, "unix:" + place))
                self.assertGreaterEqual(done["rounds_made"], 2)
                self.assertEqual(len(done["rounds"]), done["rounds_made"])
                self.assertEqual(done["rounds"][0]["pages"], 1024)
                self.assertGreater(done["total_us"], done["downtime_us"])
                self.assertGreaterEqual(done["downtime_us"], done["ready_us"])
                self.assertEqual(done["pages"], sum(done[kind + "_pages"] for kind in ("sent", "zero", "copied", "unchanged")))
                destination.kill()  # or it takes the next one's processor

    def test_one_that_cannot_be_handed_over_in_time_stays(self):
        source = self.beating()
        destination, place = self.waiting()
        line = self.refused(4, "migrate", "source", "unix:" + place, "--bandwidth", "8K", "--timeout", "1s", "--max-downtime", "1ms")
        self.assertIn("could not be moved within the time limit", line)
        self.assertRegex(line, r"it writes \d+ MiB/s, the link carries \d+ MiB/s")
        self.beats_on(source)
        self.eventually(destination.ended, "its end")
        self.assertIn("the guest never ran here", destination.said())

    # The guest.

    def probe(self, name="source"):
        self.start("--cpus", "2", "--memory", "48M", "--cmdline", "scenarios=io,ledger", name=name)
        self.wait_until_guest_runs(2, name)

    def words(self, name):
        """What each vCPU has counted of its I/O, and how often it was answered wrongly."""
        return [[self.guest_word(vm_case.cpu_results_gpa(cpu) + vm_case.IO_OFFSET + 8 * word, name) for word in range(5)]
                for cpu in range(2)]

    def memory(self, name):
        """All that it has written but for its stacks."""
        return self.peek(hex_gpa(vm_case.RESULTS_GPA), 0x4000, name), self.peek(hex_gpa(vm_case.LEDGER_GPA), 0x8000, name)

    def test_a_paused_one_arrives_paused_with_all_its_memory(self):
        self.probe()
        self.good("pause", "source")
        before = self.memory("source"), self.words("source")
        destination, place = self.waiting()
        self.good("migrate", "source", "unix:" + place)
        self.assertEqual(self.status("destination")["state"], "held")
        self.assertEqual((self.memory("destination"), self.words("destination")), before)
        self.assertEqual(destination.phase(), "running")
        self.good("resume", "destination")
        for cpu in range(2):
            self.guest_goes_on("destination", cpu)

    def test_one_that_runs_arrives_held_where_that_is_asked_for(self):
        source = self.beating()
        destination, place = self.waiting("--paused")
        self.good("migrate", "source", "unix:" + place)
        self.assertEqual(self.status("destination")["state"], "held")
        self.eventually(source.ended, "the source's end")
        self.good("resume", "destination")
        self.arrived(source, destination)

    def test_its_patches_go_with_it(self):
        self.probe()
        file = os.path.join(self.runtime, "fix.json")
        with open(file, "w", encoding="utf-8") as stream:
            json.dump({"format": 1, "name": "fix", "version": "7", "target": {"any": True}, "writes": [
                {"at": hex_gpa(FREE), "kind": "data", "expect": "0000", "bytes": "1122"}]}, stream)
        self.good("patch", "apply", "source", file)
        applied = json.loads(self.good("patch", "show", "source", "fix", "--json"))
        _, place = self.waiting()
        self.good("migrate", "source", "unix:" + place)
        self.good("patch", "verify", "destination")
        shown = json.loads(self.good("patch", "show", "destination", "fix", "--json"))
        self.assertEqual({**shown, "vm": ""}, {**applied, "vm": ""})
        self.assertEqual(len(json.loads(self.good("patch", "list", "destination", "--json"))["history"]), 1)
        self.good("patch", "revert", "destination", "fix")
        self.assertEqual(self.peek(hex_gpa(FREE), 2, "destination"), b"\0\0")

    def test_back_and_forth_it_goes_on(self):
        self.probe("vm0")
        name, before = "vm0", self.words("vm0")
        for turn in range(1, TURNS + 1):
            _, place = self.waiting(name=f"vm{turn}")
            self.good("migrate", name, "unix:" + place, *(["--compress", "zstd"] if turn % 2 else []))
            name = f"vm{turn}"
            for cpu in range(2):
                self.guest_goes_on(name, cpu)
            after = self.words(name)
            for old, new in zip(before, after):
                self.assertTrue(all(one <= other for one, other in zip(old, new)), f"{before}, {after}")
                self.assertEqual(new[4], 0, "an access was answered wrongly")
            before = after
        bell = self.status(name)["doorbell"]
        self.assertEqual((bell["lost"], bell["doubled"]), (0, 0))

    # What is seen of it, and its end.

    def test_one_that_waits_is_seen_and_can_be_ended(self):
        for how in ("shutdown", "sigterm", "sigint"):
            with self.subTest(how):
                destination, place = self.waiting()
                status = self.status("destination")
                self.assertEqual((status["state"], status["incoming"]["phase"], status["incoming"]["place"]),
                                 ("incoming", "waiting", "unix:" + place))
                self.assertIn(f"waits at   unix:{place}\n", self.good("status", "destination"))
                self.assertRegex(self.good("ls"), r"destination +\d+ +incoming")
                self.assertIn("the guest is not here yet", self.refused(4, "pause", "destination"))
                self.assertIn("the guest is still the source's", self.refused(3, "resume", "destination"))
                if how == "shutdown":
                    self.good("shutdown", "destination")
                else:
                    destination.child.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGINT)
                self.eventually(destination.ended, "its end")
                self.assertNotIn("the guest never ran here", destination.said())
                self.assertFalse(os.path.exists(place))
                self.assertEqual(self.left_behind(), [])

    def stays(self, source, destination, place):
        self.beats_on(source)
        self.assertEqual(source.migration(), "here")
        self.eventually(destination.ended, "the destination's end")
        self.assertIn("the guest never ran here", destination.said())
        self.assertFalse(os.path.exists(place))
        self.assertEqual([name for name in self.left_behind() if name.startswith("destination.")], [])
        self.assertIsNone(self.first_wrong(source.output()))

    def test_a_command_that_is_interrupted_leaves_it_where_it_is(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            source, destination, place, command = self.copying()
            self.assertEqual(destination.phase(), "loading")
            command.send_signal(number)
            self.assertIn("was cancelled", command.communicate(timeout=vm_case.LIMIT_S)[1])
            self.assertEqual(command.returncode, 1)
            self.stays(source, destination, place)
            source.kill()

    def test_a_destination_that_is_ended_leaves_it_where_it_is(self):
        source, destination, place, command = self.copying()
        self.good("shutdown", "destination")
        command.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual(command.returncode, 1)
        self.stays(source, destination, place)

    def test_a_source_that_is_shut_down_meanwhile_ends_with_its_guest(self):
        source, destination, _, command = self.copying()
        self.good("shutdown", "source", "--now")
        self.eventually(source.ended, "its end")
        command.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual((source.child.returncode, command.returncode), (0, 1))
        self.eventually(destination.ended, "the destination's end")
        self.assertIn("the guest never ran here", destination.said())

    def test_all_clients_see_it_and_any_can_call_it_off(self):
        source, destination, place, command = self.copying()
        job, = source.ask("GET", "/v1/jobs")["jobs"]
        self.assertEqual((job["state"], job["phase"]), ("running", "copying memory"))
        view = source.ask("GET", "/v1/migration")
        self.assertEqual(view["phase"], "copying")
        there = destination.ask("GET", "/v1/status")["incoming"]
        self.assertEqual((there["vm"], there["id"]), ("source", view["id"]))
        self.assertIn("nothing is in doubt", self.refused(3, "migrate", "source", "--run-here"))
        self.assertIsNotNone(source.ask("POST", f"/v1/jobs/{job['job']}/cancel"))
        self.assertIn("was cancelled", command.communicate(timeout=vm_case.LIMIT_S)[1])
        self.assertEqual(source.ask("GET", "/v1/jobs")["jobs"][0]["state"], "cancelled")
        self.stays(source, destination, place)

    def test_words_and_options_that_do_not_go_together_are_named(self):
        for words, said in ((["migrate", "x"], "needs a URI"),
                            (["migrate", "x", "nowhere"], "is no address"),
                            (["migrate", "x", "stdio:"], "is for a destination alone"),
                            (["migrate", "x", "unix:/a", "unix:/b"], "one place to go to at a time"),
                            (["migrate", "x", "--drop", "--run-here"], "one decision at a time"),
                            (["migrate", "x", "--drop", "unix:/a"], "no place is needed"),
                            (["migrate", "x", "--drop", "--streams", "2"], "does not go with --drop"),
                            (["migrate", "x", "unix:/a", "--compress", "lz4"], "must be zstd"),
                            (["run", "--incoming", "exec:x"], "is for a source alone"),
                            (["run", "--incoming", "fd:1"], "is stdin, stdout or stderr"),
                            (["run", "--incoming", "unix:/a", "--cpus", "2"], "describes the whole machine"),
                            (["run", "--incoming", "unix:/a", "--detach"], "needs --name"),
                            (["run", "--keep", "1s"], "goes with --incoming")):
            with self.subTest(words):
                self.assertIn(said, self.refused(2, *words))


if __name__ == "__main__":
    vm_case.main()
