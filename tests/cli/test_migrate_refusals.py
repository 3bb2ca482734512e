# SPDX-License-Identifier: Apache-2.0
"""Who is not let in, and what cannot be moved: each is named, the guest goes on where it was, and whoever waited for a
migration still does."""

import contextlib
import os
import signal
import socket
import threading
import unittest

import migration_frames
import vm_case
from migrate_case import MigrateCase, Side
from migration_frames import HELLO, MACHINE, PAGES, REFUSAL, WELCOME, WORD
from migration_proxy import Proxy, Step

FULL = os.environ.get("STOPVISOR_TEST_MODE", "quick") != "quick"
SENT_AWAY = "a caller was sent away: "
NO_XXHASH = "libxxhash.so.0 is not there: no message can be made up"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
STRANGERS = {  # what they send, and what is said of it
    "who hangs up": (b"", "hung up"),
    "garbage": (bytes(range(1, 100)), "does not speak our protocol"),
    "a browser": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "does not speak our protocol"),
    "TLS": (TLS_HELLO, "does not speak our protocol"),
    "half a message": (b"SVMG\x01\0\0\0", "hung up in the middle of a message"),
    "a length beyond all": (migration_frames.frame(HELLO, length=0xFFFFFFFF, checksum=0), "is too long: 4294967295 bytes"),
    "pages at once": (migration_frames.frame(PAGES, checksum=0), "nobody has said hello"),
    "a kind that is none": (migration_frames.frame(77, checksum=0), "which there is not"),
    "a number that is wrong": (migration_frames.frame(HELLO, number=3, checksum=0), "says that it is number 3"),
    "a wrong checksum": (migration_frames.frame(HELLO, bytes(64), checksum=1), "is not what its checksum says"),
}


class Refusals(MigrateCase):
    def setUp(self):
        super().setUp()
        self.open = contextlib.ExitStack()
        self.addCleanup(self.open.close)

    def call(self, place):
        """A link of our own to a destination that waits at a unix socket or a port of this host."""
        kind = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
        link = self.open.enter_context(socket.socket(kind, socket.SOCK_STREAM))
        link.settimeout(vm_case.LIMIT_S)
        link.connect(place)
        return link

    def moves(self, source, uri, destination):
        self.good("migrate", source.name, uri)
        self.beats_on(destination)
        self.eventually(source.ended, "the source's end")
        self.assertIsNone(self.first_wrong(source.output() + destination.output()))

    def stays(self, source, status, uri, *options):
        """It is not moved, with one line; its guest goes on. Returns the line."""
        line = self.refused(status, "migrate", source.name, uri, *options)
        self.beats_on(source)
        self.assertEqual(source.migration(), "here")
        return line

    # Strangers at the door.

    def test_strangers_are_sent_away_by_name_and_a_source_comes_in(self):
        destination = Side(self, "destination", "--incoming", "tcp://127.0.0.1:0")
        uri = destination.ask("GET", "/v1/status")["incoming"]["place"]
        place = ("127.0.0.1", int(uri.rpartition(":")[2]))
        for number, (name, (sent, said)) in enumerate(STRANGERS.items(), 1):
            with self.subTest(name):
                link = self.call(place)
                link.sendall(sent)
                link.shutdown(socket.SHUT_WR)
                self.eventually(lambda number=number: destination.said().count(SENT_AWAY) == number, f"{name} is named")
                line = destination.said().splitlines()[-1]
                self.assertIn(said, line)
                self.assertIn("127.0.0.1", line)
        self.assertEqual(destination.phase(), "waiting")
        self.moves(self.beating(), uri, destination)

    def test_peers_that_say_nothing_keep_no_source_waiting_for_long(self):
        destination, place = self.waiting()
        for _ in range(20):  # more than are heard at once
            self.call(place)
        self.moves(self.beating(), "unix:" + place, destination)
        self.assertRegex(destination.said(), SENT_AWAY + ".* said nothing for 5 s")

    @unittest.skipUnless(migration_frames.XXHASH, NO_XXHASH)
    def test_another_version_and_what_is_not_known_here_are_refused(self):
        destination, place = self.waiting()
        for hello, said in ((migration_frames.hello(2, 9), "speaks versions 2 to 9, this destination version 1"),
                            (migration_frames.hello(features=migration_frames.TLS | 7, required=migration_frames.TLS),
                             "the source requires what this destination lacks: TLS"),
                            (migration_frames.hello(features=1 << 63, required=1 << 63), "lacks: feature 63"),
                            (migration_frames.hello(required=8), "requires what it does not offer"),
                            (migration_frames.hello(vm=b"../\x1b[31m"), "name cannot be one"),
                            (migration_frames.hello(role=3), "no known role"),
                            (migration_frames.hello(role=2), "asks for a migration that is not known here")):
            link = self.call(place)
            link.sendall(hello)
            kind, payload = migration_frames.read_frame(link)
            self.assertEqual(kind, REFUSAL)
            self.assertIn(said, payload.decode())
            self.eventually(lambda said=said: said in destination.said(), f"{said} is told here too")
        self.assertNotIn("\x1b", destination.said())
        self.moves(self.beating(), "unix:" + place, destination)

    @unittest.skipUnless(migration_frames.XXHASH, NO_XXHASH)
    def test_who_says_hello_and_nothing_of_use_keeps_no_source_out(self):
        destination, place = self.waiting()
        times = 0
        for kind, length, said in ((MACHINE, 0xFFFFFFFF, "(a machine) is too long: 4294967295 bytes"),
                                   (WORD, 1, "sends message 10 in place of 4"),
                                   (MACHINE, 8, "the machine: "),
                                   (None, 0, "hung up")):
            link = self.call(place)
            link.sendall(migration_frames.hello())
            self.assertEqual(migration_frames.read_frame(link)[0], WELCOME)
            stream = self.call(place)
            stream.sendall(migration_frames.hello(role=1, number=1))
            self.assertEqual(migration_frames.read_frame(stream)[0], WELCOME)
            if kind is None:
                link.close()
            else:
                link.sendall(migration_frames.frame(kind, bytes(length) if length < 100 else b"", number=1, length=length))
            times += 1
            self.eventually(lambda: destination.said().count(SENT_AWAY) == times, "it is sent away")
            self.assertIn(said, destination.said().splitlines()[-1])
            self.eventually(lambda: destination.phase() == "waiting", "the next may come")
            self.assertIsNone(migration_frames.read_frame(stream), "its streams are gone with it")
        self.moves(self.beating(), "unix:" + place, destination)

    @unittest.skipUnless(migration_frames.XXHASH, NO_XXHASH)
    def test_where_there_is_one_link_alone_its_end_is_the_destinations(self):
        ours, its = socket.socketpair()
        with ours:
            destination = Side(self, "destination", "--incoming", f"fd:{its.fileno()}", pass_fds=[its.fileno()])
            its.close()
            ours.settimeout(vm_case.LIMIT_S)
            ours.sendall(migration_frames.hello())
            self.assertEqual(migration_frames.read_frame(ours)[0], WELCOME)
        self.eventually(destination.ended, "its end")
        self.assertEqual(destination.child.returncode, 1)
        self.assertIn("hung up", destination.said())
        self.assertIn("the guest never ran here", destination.said())
        self.assertEqual([name for name in self.left_behind() if not name.endswith(".log")], [])

    # A destination that is none.

    @contextlib.contextmanager
    def false_destination(self, answer):
        """Hears a hello, gives `answer`, and waits until the other side hangs up."""
        path = os.path.join(self.runtime, "false")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(vm_case.LIMIT_S)

            def serve():
                with listener.accept()[0] as link, contextlib.suppress(OSError):  # it hung up first
                    link.settimeout(vm_case.LIMIT_S)
                    migration_frames.read_frame(link)
                    link.sendall(answer)
                    while link.recv(1 << 16):
                        pass

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            yield "unix:" + path
            thread.join()
        os.unlink(path)

    @unittest.skipUnless(migration_frames.XXHASH, NO_XXHASH)
    def test_a_destination_that_does_not_begin_is_given_up_in_time(self):
        source = self.beating()
        with self.false_destination(migration_frames.welcome()) as uri:
            line = self.stays(source, 4, uri, "--timeout", "1s")
        self.assertIn("the destination did not begin to take it; it goes on here", line)

    def test_what_is_no_destination_is_named(self):
        source = self.beating()
        answers = [(1, b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", "does not speak our protocol"),
                   (1, migration_frames.frame(WELCOME, length=0xFFFFFFFF, checksum=0), "is too long"),
                   (1, migration_frames.frame(PAGES, checksum=0), "nobody has said hello"),
                   (1, migration_frames.frame(WELCOME, bytes(9), checksum=1), "is not what its checksum says")]
        if migration_frames.XXHASH:
            answers += [(1, migration_frames.welcome(version=2), "answers with what was not offered"),
                        (1, migration_frames.welcome(features=1 << 40), "answers with what was not offered"),
                        (3, migration_frames.frame(WELCOME, b"\1"), "the welcome: "),
                        (3, migration_frames.refusal(3, b"run", b"x", b"no \x1b[31m\n here"), "refuses: run: x: no ?[31m? here"),
                        (1, migration_frames.refusal(0, b"run", b"x", b"status 0"), "status 0")]
        for status, answer, said in answers:
            with self.subTest(said), self.false_destination(answer) as uri:
                self.assertIn(said, self.stays(source, status, uri))

    def test_where_nobody_waits_is_said_at_once(self):
        source = self.beating()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for uri in (f"unix:{self.runtime}/none", f"tcp://127.0.0.1:{port}"):
            self.assertEqual(self.stays(source, 4, uri), f"stopvisor: migrate: source: {uri}: nobody listens there")
        self.assertIn("ended with status 7", self.stays(source, 1, "exec:exit 7"))

    def test_plain_tcp_to_elsewhere_needs_a_word(self):
        source = self.beating()
        said = "leads to another host, and over plain TCP anybody on the way can read"
        self.assertIn(said, self.refused(2, "run", "--name", "x", "--incoming", "tcp://0.0.0.0:0"))
        self.assertIn(said, self.stays(source, 2, "tcp://192.0.2.1:4444"))  # RFC 5737: nobody's
        destination = Side(self, "destination", "--incoming", "tcp://0.0.0.0:0", "--insecure")
        port = destination.ask("GET", "/v1/status")["incoming"]["place"].rpartition(":")[2]
        self.moves(source, f"tcp://127.0.0.1:{port}", destination)

    # What does not fit.

    def test_a_name_that_is_taken_is_named_at_both_sides(self):
        source = self.beating()
        place = os.path.join(self.runtime, "in")
        self.assertIn("source", self.refused(3, "run", "--name", "source", "--incoming", "unix:" + place))
        self.assertFalse(os.path.exists(place))
        unnamed = f"exec:'{vm_case.STOPVISOR}' run --incoming stdio:"
        self.assertIn("another name can be given with --name", self.stays(source, 3, unnamed))

    def start_with_disk(self):
        self.disk = os.path.join(self.runtime, "disk")
        with open(self.disk, "wb") as file:
            file.truncate(1 << 20)
        source = Side(self, "source", *self.guest_of_beats(), "--disk", self.disk)
        self.beats_on(source)
        return source

    def test_disks_that_are_not_there_or_others_are_named_before_anything_moves(self):
        source = self.start_with_disk()
        smaller = os.path.join(self.runtime, "smaller")
        with open(smaller, "wb") as file:
            file.truncate(1 << 19)
        for status, option, said in ((1, f"0={self.runtime}/none", "No such file"), (3, f"0={smaller}", "524288"),
                                     (2, f"1={smaller}", "disk 1")):
            with self.subTest(option):
                destination, place = self.waiting("--disk", option)
                line = self.refused(status, "migrate", "source", "unix:" + place)
                self.assertIn(said, line)
                self.eventually(destination.ended, "its end")
                self.assertIn(said, destination.said())
                self.assertIn("the guest never ran here", destination.said())
                self.beats_on(source)
                self.assertEqual(source.ask("GET", "/v1/migration")["rounds_made"], 0, "nothing moved")

    # Two at once.

    def test_one_migration_at_a_time_at_either_side(self):
        source, destination, place, command = self.copying()
        second = self.beating("second")
        self.assertIn("another migration is arriving here already", self.stays(second, 4, "unix:" + place))
        self.assertIn(SENT_AWAY, destination.said())
        self.assertIn("a live snapshot or a migration of it is under way",
                      self.refused(4, "migrate", "source", f"unix:{self.runtime}/other"))
        command.send_signal(signal.SIGINT)
        self.assertIn("was cancelled", command.communicate(timeout=vm_case.LIMIT_S)[1])
        self.beats_on(source)

    # A peer that is there and does nothing.

    def test_a_destination_that_stands_still_is_given_up_and_the_guest_goes_on(self):
        source, destination, _, command = self.copying()
        destination.child.send_signal(signal.SIGSTOP)
        errors = command.communicate(timeout=vm_case.LIMIT_S)[1]
        self.assertEqual(command.returncode, 1, errors)
        self.assertRegex(errors, "(said|read) nothing for 10 s")
        self.beats_on(source)
        destination.child.send_signal(signal.SIGCONT)
        self.eventually(destination.ended, "its end")
        self.assertIn("the guest never ran here", destination.said())

    def test_a_source_that_stands_still_is_given_up_and_has_its_guest(self):
        source, destination, _, command = self.copying()
        source.child.send_signal(signal.SIGSTOP)
        self.eventually(destination.ended, "its end")
        self.assertIn("said nothing for 10 s; the guest never ran here", destination.said())
        source.child.send_signal(signal.SIGCONT)
        command.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual(command.returncode, 1)
        self.beats_on(source)
        self.assertIsNone(self.first_wrong(source.output()))

    def half_open(self, word):
        """The link stands still at a word of the hand-over, which is lost with it; a new one is as it should be."""
        source = self.beating()
        destination, place = self.waiting()
        over = threading.Event()
        proxy = Proxy(os.path.join(self.runtime, "proxy"), place, Step("", WORD, word=word), True,
                      lambda _: over.wait(vm_case.LIMIT_S))
        self.addCleanup(proxy.close)
        self.addCleanup(over.set)  # before that: it is waited for there
        command = self.migrating(source, "unix:" + proxy.path)
        errors = command.communicate(timeout=vm_case.LIMIT_S)[1]
        return source, destination, command.returncode, errors

    @unittest.skipUnless(FULL, "skipped: twice ten seconds of silence: not in --quick")
    def test_a_link_that_falls_silent_at_the_last_words_is_found_out(self):
        for word in (migration_frames.COMMIT, migration_frames.RUNNING):
            source, destination, status, errors = self.half_open(word)
            self.assertEqual(status, 0, errors)
            self.beats_on(destination)
            self.assertIn("said nothing for 10 s", source.said() + destination.said())  # by who found it out first
            self.assertIsNone(self.first_wrong(source.output() + destination.output()))
            destination.kill()
            self.doCleanups()
            self.setUp()


if __name__ == "__main__":
    vm_case.main()
