# SPDX-License-Identifier: Apache-2.0
"""What a scenario found: each check says its line, and is counted."""

import sys


class Checks:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.prefix = ""

    def _say(self, verdict, text, why=""):
        sys.stdout.write(f"  {verdict}: {self.prefix}{text}{': ' + why if why else ''}\n")
        sys.stdout.flush()

    def that(self, text, holds, why=""):
        """Counts whether `text` is true; `why` is said where it is not. Returns whether it is."""
        if holds:
            self.passed += 1
            self._say("ok", text)
        else:
            self.failed += 1
            self._say("FAILED", text, str(why))
        return bool(holds)

    def equal(self, text, got, wanted):
        return self.that(text, got == wanted, f"got {got!r}, not {wanted!r}")

    def fail(self, text, why=""):
        self.that(text, False, why)

    def skip(self, text, why):
        self.skipped += 1
        self._say("skipped", text, why)

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
