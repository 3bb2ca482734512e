# SPDX-License-Identifier: Apache-2.0
"""Stands between the two sides of a migration, knows its messages, and does something at one of them.

A source calls the proxy's socket; it calls the destination's.
"""

import os
import socket
import threading

from migration_frames import (ACCEPTED, COMMIT, HEADER, HELLO, MACHINE, MAGIC, PAGES, PREPARED, ROUND_DONE, ROUND_END,
                              RUNNING, STATE, WELCOME, WORD, read_exactly)


class Step:
    """A message of the protocol: the `number`th of its kind, from 1, or the first of a word of the hand-over."""

    def __init__(self, name, kind, number=1, word=None):
        self.name, self.kind, self.number, self.word = name, kind, number, word


# All there are, in their order. The second round is the one under the stop, or one just before it.
STEPS = [Step("hello", HELLO), Step("welcome", WELCOME), Step("machine", MACHINE), Step("accepted", ACCEPTED),
         Step("pages", PAGES), Step("round-end", ROUND_END), Step("round-done", ROUND_DONE),
         Step("last-pages", PAGES, 2), Step("last-round-end", ROUND_END, 2), Step("state", STATE),
         Step("last-round-done", ROUND_DONE, 2), Step("prepared", WORD, word=PREPARED),
         Step("commit", WORD, word=COMMIT), Step("running", WORD, word=RUNNING)]


class Proxy:
    """`act` is called once, by a thread of the proxy: at `step`, `before` it goes on or after it did."""

    def __init__(self, path, target, step=None, before=True, act=None):
        self.path, self.target = path, target
        self.step, self.before, self.act = step, before, act
        self.reached = threading.Event()
        self.acted = threading.Event()
        self.open = True  # whether callers are let through
        self.goes_on = False  # whether what `act` comes before is passed on after it
        self.before_receipt = None  # called before the first round's receipt goes on
        self.calls = 0
        self._seen = 0
        self._lock = threading.Lock()
        self._links = []
        self._threads = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen()
        self._start(self._serve)

    def _start(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self):
        while True:
            try:
                caller = self._listener.accept()[0]
            except OSError:
                return
            with self._lock:
                self.calls += 1
                called = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    if not self.open:
                        raise ConnectionRefusedError
                    called.connect(self.target)
                except OSError:
                    caller.close()
                    called.close()
                    continue
                self._links += [caller, called]
            self._start(self._pump, caller, called)
            self._start(self._pump, called, caller)

    def _is_it(self, kind, payload):
        step = self.step
        if step is None or kind != step.kind or step.word is not None and payload[0] != step.word:
            return False
        with self._lock:
            self._seen += 1
            return self._seen == step.number

    def _pump(self, from_link, to_link):
        """Carries messages one way until either link ends; then both do."""
        try:
            while (head := read_exactly(from_link, HEADER.size)) is not None:
                magic, kind, _, _, length, _, _ = HEADER.unpack(head)
                assert magic == MAGIC, head
                payload = read_exactly(from_link, length)
                if payload is None:
                    break
                if kind == ROUND_DONE and self.before_receipt is not None:
                    self.before_receipt()
                    self.before_receipt = None
                if not self._is_it(kind, payload):
                    to_link.sendall(head + payload)
                    continue
                if not self.before:
                    to_link.sendall(head + payload)
                self.reached.set()
                self.act(self)
                self.acted.set()
                if self.before and not self.goes_on:
                    break
                if self.before:
                    to_link.sendall(head + payload)
        except OSError:
            pass
        for link in (from_link, to_link):
            hang_up(link)

    def cut(self):
        """All links there are."""
        with self._lock:
            for link in self._links:
                hang_up(link)

    def shut(self):
        """Callers are sent away, and those who are there: nothing comes through."""
        with self._lock:
            self.open = False
        self.cut()

    def close(self):
        hang_up(self._listener)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for link in self._links:
            link.close()
        os.unlink(self.path)


def hang_up(link):
    try:
        link.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was hung up already
