# SPDX-License-Identifier: Apache-2.0
"""snapshot chain and verify, called off by a signal or killed at any moment: the old state is there, or the whole new one."""

import os
import random
import shutil
import signal
import subprocess
import time

import vm_case
from vm_case import VmCase, hex_gpa

LONG = os.environ.get("STOPVISOR_TEST_MODE") == "long"
SANITIZED = "ASAN_OPTIONS" in os.environ  # set by tests/run.py
ROUNDS = 50 if LONG else 1 if SANITIZED else 4  # of each verb, for each way to end it
FREE = 0x1000000  # 16 MiB: memory that the guest does not touch
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class ChainFaults(VmCase):
    def setUp(self):
        super().setUp()
        seed = random.randrange(1 << 32)
        print(f"seed {seed}", flush=True)
        self.choose = random.Random(seed)
        self.snapshots = os.path.join(self.runtime, "snapshots")
        self.kept = os.path.join(self.runtime, "kept")
        os.mkdir(self.snapshots)
        self.start("--memory", "64M")
        self.wait_until_guest_runs(1)
        connection = self.connect()
        parent = ()
        for name in ("a", "b", "c"):
            for number in range(16):
                body = {"writes": [{"address": hex_gpa(FREE + (number << 20)), "bytes": self.choose.randbytes(1 << 19).hex()}]}
                self.assertEqual(connection.ask("POST", "/v1/poke", body)[0], 200)
            self.good("snapshot", "create", "vm1", self.place(name), *parent)
            parent = ("--parent", self.place(name))
        connection.close()
        self.good("shutdown", "vm1", "--now")
        shutil.copytree(self.snapshots, self.kept)

    def place(self, name):
        return os.path.join(self.snapshots, name)

    def verbs(self):
        """What is called off or killed: its words, and what is new when it is done."""
        return ((("chain", "merge", self.place("c"), self.place("new")), ["new"]),
                (("chain", "merge", self.place("c"), self.place("new"), "--compress"), ["new"]),
                (("chain", "rebase", self.place("c"), self.place("a"), self.place("new")), ["new"]),
                (("chain", "prune", self.place("c")), []),
                (("verify", self.place("c")), []))

    def names(self):
        return sorted(os.listdir(self.snapshots))

    def as_it_was(self):
        shutil.rmtree(self.snapshots)
        shutil.copytree(self.kept, self.snapshots, copy_function=os.link)  # nobody writes to a file that is there

    def length_of(self, words):
        begin = time.monotonic()
        self.good("snapshot", *words)
        length = time.monotonic() - begin
        self.as_it_was()
        return length

    def end_at_any_moment(self, words, length, number):
        """Returns how it ended, and what it said."""
        command = [vm_case.STOPVISOR, "snapshot", *words]
        with subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            time.sleep(self.choose.uniform(0, length))  # the moment is the subject, not a synchronisation
            child.send_signal(number)
            _, said = child.communicate(timeout=vm_case.LIMIT_S)
            return child.returncode, said

    def is_whole(self, name):
        self.assertEqual(self.good("snapshot", "verify", self.place(name)), f"{self.place(name)}: good\n")

    def test_called_off_by_a_signal_it_leaves_the_old_state_and_says_so(self):
        for words, new in self.verbs():
            length = self.length_of(words)
            ends = {"done": 0, "called off": 0, "before or after": 0}
            for attempt in range(ROUNDS):
                number = ENDING[attempt % len(ENDING)]
                status, said = self.end_at_any_moment(words, length, number)
                self.assertIn(status, (0, 128 + number, -number), said)
                old, all_new = ["a", "b", "c"], ["c"] if "prune" in words else ["a", "b", "c", *new]
                found = self.names()
                if status == 0:
                    ends["done"] += 1
                    self.assertEqual(found, all_new)
                elif status > 0:
                    ends["called off"] += 1
                    self.assertEqual(found, old)
                    self.assertRegex(said, r"^stopvisor: snapshot [a-z ]+: [^\n]*: was cancelled\n$")
                else:  # before it takes signals, or when all is done: a sanitizer's exit takes its time
                    ends["before or after"] += 1
                    self.assertIn(found, (old, all_new))
                for name in {"c", *new} & set(found):
                    self.is_whole(name)
                self.as_it_was()
            print(" ".join(words[:2]), ends, flush=True)

    def test_killed_at_any_moment_it_leaves_the_old_state_or_the_new_one(self):
        for words, new in self.verbs()[:-1]:
            length = self.length_of(words)
            for _ in range(ROUNDS):
                self.end_at_any_moment(words, length, signal.SIGKILL)
                self.is_whole("c")
                for name in new:
                    if os.path.exists(self.place(name)):
                        self.is_whole(name)
                self.good("snapshot", "chain", "merge", self.place("c"), self.place("next"))
                self.assertEqual([name for name in self.names() if name.startswith(".")], [])
                self.as_it_was()


if __name__ == "__main__":
    vm_case.main()
