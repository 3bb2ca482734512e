# SPDX-License-Identifier: Apache-2.0
"""What the tests of migration share: two sides as children of ours, what each says of itself, and a guest whose
output shows where it ran: each number once, whatever happens."""

import os
import subprocess

import raw_guest
import vm_case
from vm_case import VmCase


class Side:
    """A VM's process. Its guest's serial output, and what it says itself, are files."""

    def __init__(self, case, name, *options, **popen):
        self.case, self.name = case, name
        self.serial = os.path.join(case.runtime, name + ".serial")
        self.said_at = os.path.join(case.runtime, name + ".said")
        with open(self.said_at, "wb") as said:
            self.child = subprocess.Popen(
                [vm_case.STOPVISOR, "run", "--name", name, "--serial", "file:" + self.serial, *map(str, options)],
                env=case.env, stdin=subprocess.DEVNULL, stdout=said, stderr=said, **popen)
        case.pids.append(self.child.pid)
        case.addCleanup(self.child.wait)
        case.addCleanup(self.child.kill)  # goes first
        case.eventually(lambda: self.ended() or self.ask("GET", "/v1/status") is not None, f"{name} answers")

    def ended(self):
        return self.child.poll() is not None

    def kill(self):
        """By force, and all of it: nothing of it runs after this."""
        self.child.kill()
        self.child.wait()

    def said(self):
        with open(self.said_at, encoding="utf-8") as said:
            return said.read()

    def ask(self, method, target, body=None):
        """The document of a good answer; None where there is none."""
        connection = vm_case.UnixConnection(self.case.socket_path(self.name))
        try:
            status, document = connection.ask(method, target, body)
            return document if status == 200 else None
        except (OSError, vm_case.http.client.HTTPException):
            return None
        finally:
            connection.close()

    def phase(self):
        """Of a destination: incoming's phase, "running" once its guest is here; "dead"."""
        status = None if self.ended() else self.ask("GET", "/v1/status")
        if status is None:
            return "dead" if self.ended() else "silent"
        return status["incoming"]["phase"] if "incoming" in status else "running"

    def migration(self):
        """Of a source: its migration's phase; "dead", and "gone" where that is how it ended."""
        view = None if self.ended() else self.ask("GET", "/v1/migration")
        if view is None:
            return "silent" if not self.ended() else "gone" if self.child.returncode == 0 else "dead"
        return view["phase"]

    def output(self):
        if not os.path.exists(self.serial):  # no machine was made here
            return b""
        with open(self.serial, "rb") as file:
            return file.read()


class MigrateCase(VmCase):
    def guest_of_beats(self, memory="4M"):
        path = raw_guest.kernel(raw_guest.beat())
        self.addCleanup(os.unlink, path)
        return ["--kernel", path, "--memory", memory]

    def beating(self, name="source"):
        """A VM whose guest has begun to count."""
        side = Side(self, name, *self.guest_of_beats())
        self.beats_on(side)
        return side

    def copying(self):
        """A migration of some 16 seconds: both sides, where the destination waits, and the command."""
        source = Side(self, "source", *self.guest_of_beats("16M"))
        self.beats_on(source)
        for number in range(16):
            body = {"writes": [{"address": vm_case.hex_gpa(0x400000 + (number << 19)), "bytes": os.urandom(1 << 19).hex()}]}
            self.assertIsNotNone(source.ask("POST", "/v1/poke", body))
        destination, place = self.waiting()
        command = self.migrating(source, "unix:" + place, "--bandwidth", "512K")
        self.eventually(lambda: source.migration() == "copying", "it copies")
        return source, destination, place, command

    def waiting(self, *options, name="destination"):
        """A destination, and where it waits."""
        place = os.path.join(self.runtime, name + ".in")
        side = Side(self, name, "--incoming", "unix:" + place, *options)
        self.assertFalse(side.ended(), side.said() if side.ended() else "")
        return side, place

    def migrating(self, side, uri, *options):
        """The command that moves it, as a child of ours."""
        child = subprocess.Popen([vm_case.STOPVISOR, "migrate", side.name, uri, *map(str, options)], env=self.env,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: [stream.close() for stream in (child.stdout, child.stderr)])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        return child

    def beats_on(self, side, lines=3):
        """The guest runs here: its output grows by some lines."""
        size = os.path.getsize(side.serial) + lines * 9
        self.eventually(lambda: side.ended() or os.path.getsize(side.serial) >= size, f"{side.name} beats")
        self.assertFalse(side.ended(), side.said() if side.ended() else "")

    def first_wrong(self, beats, begin=0):
        """Where these bytes are not those of all beats from byte `begin` on; None: nowhere."""
        first = begin // 9 + 1
        lines = b"".join(b"%08x\n" % number for number in range(first, first + len(beats) // 9 + 2))
        good = lines[begin % 9:begin % 9 + len(beats)]
        if beats == good:
            return None
        at = next(at for at in range(len(beats)) if beats[at] != good[at])
        return f"byte {at} of {len(beats)}: {beats[max(0, at - 30):at + 30]}, not {good[max(0, at - 30):at + 30]}"

    def place_in_all(self, beats):
        """Where in all beats these are, which are more than a line of them."""
        rest = beats.index(b"\n") + 1
        return (int(beats[rest:rest + 8], 16) - 1) * 9 - rest
