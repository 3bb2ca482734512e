# SPDX-License-Identifier: Apache-2.0
"""A stream of text from a machine, as one who watches it sees it: kept, shown, and waited on."""

import os
import re
import socket
import sys
import threading
import time


END_MARK = "\x1e"  # ends what a command printed to a port; not passed on


class Missed(Exception):
    """What was waited for did not come: the time ran out, or the machine ended."""


class Console:
    """The host's end of one serial port. A thread of its own reads it, so that the machine never waits for us."""

    def __init__(self, name, log_path, show=False):
        self.name = name
        self.text = ""
        self._seen = 0  # up to where `expect` has consumed the text
        self._changed = threading.Condition()
        self._ended = False
        self._show = show
        self._shown = ""
        self.passed_on = None  # a stream that gets each byte as it comes
        self._log = open(log_path, "w", encoding="utf-8", errors="replace")
        ours, self.theirs = socket.socketpair()
        self._socket = ours
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        while True:
            try:
                data = self._socket.recv(65536)
            except OSError:
                data = b""
            text = data.decode("utf-8", errors="replace")
            with self._changed:
                self.text += text
                self._ended = not data
                self._changed.notify_all()
            if not data:
                return
            if self.passed_on:
                self.passed_on.write(data.replace(END_MARK.encode(), b""))
                self.passed_on.flush()
            self._log.write(text)
            self._log.flush()
            if self._show:
                self._print(text)

    def _print(self, text):
        *lines, self._shown = (self._shown + text).split("\n")
        for line in lines:
            clean = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[cM78]|[\r\x00]", "", line)
            sys.stdout.write(f"{self.name}| {clean}\n")
        sys.stdout.flush()

    def mark(self):
        """Where the text ends now: what comes after is new."""
        with self._changed:
            self._seen = len(self.text)
            return self._seen

    def look_again(self, mark):
        """Takes what came since the mark for not consumed: for words of two who speak at once, in whatever order."""
        with self._changed:
            self._seen = mark

    def since(self, mark):
        with self._changed:
            return self.text[mark:]

    def expect(self, pattern, limit_s):
        """Waits until the text not yet consumed has `pattern`, and consumes it. Returns the match."""
        until = time.monotonic() + limit_s
        wanted = re.compile(pattern, re.M)
        with self._changed:
            while True:
                found = wanted.search(self.text, self._seen)
                if found:
                    self._seen = found.end()
                    return found
                left = until - time.monotonic()
                if self._ended or left <= 0:
                    why = "the machine ended" if self._ended else f"not within {limit_s:.0f} s"
                    raise Missed(f"{self.name}: waited for /{pattern}/: {why}; it ended with: {self._tail()}")
                self._changed.wait(left)

    def _tail(self):
        return " | ".join(line.strip() for line in self.text[-600:].splitlines()[-6:])

    def send(self, text):
        self._socket.sendall(text.encode())

    def started(self):
        """The machine has its end of the port: ours sees when it closes it."""
        self.theirs.close()

    def close(self):
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._socket.close()
        self._log.close()
