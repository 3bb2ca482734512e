# SPDX-License-Identifier: Apache-2.0
"""console: a terminal, a pipe and several readers at the serial port of a VM that runs in the background."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import termios
import time

import raw_guest
import vm_case
from vm_case import LIMIT_S, STOPVISOR, VmCase

UPGRADE = b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: stopvisor-console\r\n\r\n"
NOTE = re.compile(rb"\r\n\[stopvisor: (\d+) bytes of output dropped\]\r\n")


class Terminal:
    """A terminal with `stopvisor console` at it."""

    def __init__(self, case, *words):
        self.case = case
        self.seen = b""
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.child = subprocess.Popen([STOPVISOR, "console", *words], env=case.env, stdin=slave, stdout=slave,
                                      stderr=subprocess.PIPE, start_new_session=True)
        self.slave = slave
        case.addCleanup(self.close)

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()
        os.close(self.master)
        os.close(self.slave)

    def wait_for(self, text):
        limit = time.monotonic() + LIMIT_S
        while text not in self.seen:
            self.case.assertLess(time.monotonic(), limit, f"{text} never came, but {self.seen[-200:]}")
            if select.select([self.master], [], [], 1)[0]:
                self.seen += os.read(self.master, 4096)

    def type(self, keys):
        os.write(self.master, keys)

    def wait_until_raw(self):
        self.case.eventually(lambda: not termios.tcgetattr(self.slave)[3] & termios.ICANON, "a raw terminal")

    def end(self):
        """Returns the exit status and what it said on stderr."""
        _, said = self.child.communicate(timeout=LIMIT_S)
        return self.child.returncode, said.decode()

    def is_as_before(self):
        return termios.tcgetattr(self.slave)[3] == self.before[3]


class Console(VmCase):
    def attach(self, name="vm1"):
        """A client without the command: its socket, after the answer's head."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(client.close)
        client.settimeout(LIMIT_S)
        client.connect(self.socket_path(name))
        client.sendall(UPGRADE)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        return client

    def read_exactly(self, client, count):
        parts = []
        while count > 0:
            part = client.recv(min(count, 65536))
            self.assertTrue(part, "the VM hung up")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def test_a_terminal_sees_what_was_printed_before_and_types_to_the_guest(self):
        self.start_raw(raw_guest.say(b"before") + raw_guest.echo())
        self.eventually(lambda: self.good("console", "vm1", "--log") == "before", "the guest's first words")
        terminal = Terminal(self, "vm1")
        terminal.wait_for(b"before")
        terminal.wait_until_raw()
        terminal.type(b"hello\x03\x01\x01.")  # Ctrl-C is the guest's, Ctrl-A twice is one
        terminal.wait_for(b"hello\x03\x01.")
        terminal.type(b"\x01x")
        status, said = terminal.end()
        self.assertEqual(status, 0, said)
        self.assertIn("vm1: detached, the VM goes on", said)
        self.assertTrue(terminal.is_as_before())
        self.assertEqual(self.status()["state"], "running")

    def test_the_end_of_the_vm_ends_the_console_with_0_and_gives_the_terminal_back(self):
        self.start_raw(raw_guest.echo())
        terminal = Terminal(self, "vm1")
        terminal.wait_until_raw()
        terminal.type(b"bye q")
        terminal.wait_for(b"bye q")
        status, said = terminal.end()
        self.assertEqual(status, 0, said)
        self.assertIn("vm1: the VM has ended", said)
        self.assertTrue(terminal.is_as_before())

    def test_a_signal_gives_the_terminal_back(self):
        self.start_raw(raw_guest.echo())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(signal=number):
                terminal = Terminal(self, "vm1")
                terminal.wait_until_raw()
                terminal.child.send_signal(number)
                self.assertEqual(terminal.end()[0], -number)
                self.assertTrue(terminal.is_as_before())

    def test_a_pipe_is_sent_whole_and_output_goes_on_until_the_vm_ends(self):
        text = "".join(f"{i}\n" for i in range(2000)) + "\x01xq"  # no escape in a pipe
        self.start_raw(raw_guest.echo())
        done = self.stopvisor("console", "vm1", input=text, stdin=None)
        self.assertEqual((done.returncode, done.stdout), (0, text), done.stderr)

    def test_without_input_it_follows_to_the_end(self):
        self.start_raw(raw_guest.say(b"one ") + raw_guest.echo())
        with subprocess.Popen([STOPVISOR, "console", "vm1", "--no-input"], env=self.env, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as follower:
            follower.stdin.write(b"not sent")
            follower.stdin.close()
            self.assertEqual(follower.stdout.read(4), b"one ")
            self.good("console", "vm1", input="two q", stdin=None)
            self.assertEqual(follower.stdout.read(), b"two q")
            self.assertEqual(follower.wait(LIMIT_S), 0)

    def test_a_held_guest_keeps_its_console_and_finds_its_input_when_it_goes_on(self):
        self.start_raw(raw_guest.echo(), "--paused")
        client = self.attach()
        client.sendall(b"x" * 5000)  # more than the port and the backlog take
        self.assertEqual(self.status()["state"], "held")
        self.good("resume", "vm1")
        self.assertEqual(self.read_exactly(client, 5000), b"x" * 5000)

    def test_every_reader_gets_everything_and_input_of_all_is_merged(self):
        self.start_raw(raw_guest.echo())
        clients = [self.attach() for _ in range(4)]
        for client in clients:
            client.sendall(b"y" * 1000)
        for client in clients:
            self.assertEqual(self.read_exactly(client, 4000), b"y" * 4000)

    def test_a_reader_that_is_stuck_holds_up_nobody_and_is_told_what_it_lost(self):
        self.start_raw(raw_guest.count())
        stuck = self.attach()
        reads = self.attach()
        # More than the host lets lie in a socket, whose other end has as much room, and the VM keeps for a reader.
        data = self.read_exactly(reads, 2 * stuck.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) + (64 << 10))
        at = data[0]
        if not NOTE.search(data):  # on a loaded machine this one may be slow as well
            self.assertTrue(all(byte == (at + i) % 256 for i, byte in enumerate(data)))
        text = b""
        while not (found := NOTE.search(text)):
            part = stuck.recv(65536)
            self.assertTrue(part)
            text += part
        text += self.read_exactly(stuck, max(0, found.end() + 1 - len(text)))
        lost = int(found.group(1))
        self.assertGreater(lost, 0)
        self.assertEqual(text[found.end()], (text[found.start() - 1] + 1 + lost) % 256)

    def test_the_log_is_the_last_64_kib(self):
        self.start_raw(raw_guest.count())
        reads = self.attach()
        self.read_exactly(reads, 70_000)
        log = self.stopvisor("console", "vm1", "--log", text=False).stdout
        self.assertEqual(len(log), 64 << 10)
        self.assertTrue(all(byte == (log[0] + i) % 256 for i, byte in enumerate(log)))
        document = json.loads(self.good("console", "vm1", "--log", "--json"))
        self.assertEqual(document["vm"], "vm1")

    def test_the_log_has_also_what_went_to_a_file(self):
        path = os.path.join(self.runtime, "serial")
        self.start_raw(raw_guest.say(b"twice") + raw_guest.echo(), "--serial", "file:" + path)
        self.eventually(lambda: self.good("console", "vm1", "--log") == "twice", "the guest's words")
        self.good("shutdown", "vm1", "--now")
        with open(path, encoding="ascii") as out:
            self.assertEqual(out.read(), "twice")

    def test_there_are_16_places_and_each_comes_back(self):
        self.start_raw(raw_guest.echo())
        clients = [self.attach() for _ in range(16)]
        self.assertIn("16 clients are attached already", self.refused(4, "console", "vm1"))
        clients.pop().close()

        def free():
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with client:
                client.settimeout(LIMIT_S)
                client.connect(self.socket_path())
                client.sendall(UPGRADE)
                return client.recv(12) == b"HTTP/1.1 101"

        self.eventually(free, "a free place")

    def test_a_reader_that_is_gone_ends_the_command(self):
        self.start_raw(raw_guest.count())
        done = subprocess.run(["sh", "-c", f'"{STOPVISOR}" console vm1 --no-input | head -c 100 | wc -c'], env=self.env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=LIMIT_S, check=True)
        self.assertEqual(done.stdout.strip(), b"100")

    def test_wrong_uses_are_refused(self):
        self.assertIn("no such VM", self.refused(1, "console", "nobody"))
        self.start()
        self.assertIn("--json goes with --log", self.stopvisor("console", "vm1", "--json").stderr)
        connection = self.connect()
        status, answer = connection.ask("GET", "/v1/console", headers={"Connection": "Upgrade", "Upgrade": "tls"})
        self.assertEqual((status, answer["error"]["status"]), (400, 2))
        self.assertEqual(connection.ask("GET", "/v1/console?x=1")[0], 400)
        self.assertEqual(connection.ask("POST", "/v1/console")[0], 405)


if __name__ == "__main__":
    vm_case.main()
