# SPDX-License-Identifier: Apache-2.0
"""snapshot create --parent: what differs from another snapshot, and chains of those."""

import json
import os
import random
import unittest

import vm_case
from vm_case import SLICES_OFFSET, VmCase, cpu_results_gpa, hex_gpa

MIB = 1 << 20
PAGE = 4096
LOW_END = 3 << 30  # vmm/guest_memory.h: memory goes on at 4 GiB
HIGH = 4 << 30
HIGH_MIB = 64
FREE = 0x800000  # memory that the guest does not touch
SANITIZED = "ASAN_OPTIONS" in os.environ  # set by tests/run.py; 3 GiB take many times as long there
LAST = 3 if SANITIZED else 10


class Parents(VmCase):
    def setUp(self):
        super().setUp()
        self.snapshots = os.path.join(self.runtime, "snapshots")
        os.mkdir(self.snapshots)

    def place(self, name):
        return os.path.join(self.snapshots, str(name))

    def create(self, name, parent=None, vm="vm1", options=()):
        words = ["--parent", self.place(parent)] if parent is not None else []
        return json.loads(self.good("snapshot", "create", vm, self.place(name), "--json", *words, *options))

    def restore(self, vm, name, *options):
        pid = json.loads(self.good("run", "--restore", self.place(name), "--name", vm, "--detach", "--json", "--paused", *options))["pid"]
        self.pids.append(pid)

    def index(self, name):
        """Which pages there are of which sort, and the checksums of their bytes: of two raw snapshots they are the same
        exactly where the memory is."""
        with open(os.path.join(self.place(name), "extents.idx"), "rb") as file:
            return file.read()

    def poke(self, *places, vm="vm1"):
        self.good("poke", vm, *[word for gpa, data in places for word in (hex_gpa(gpa), data.hex())])

    def test_ten_on_each_other_are_a_full_one_on_both_sides_of_the_hole(self):
        seed = random.randrange(1 << 32)
        print(f"seed {seed}", flush=True)
        choose = random.Random(seed)
        self.start("--cpus", 2, "--memory", f"{3 * 1024 + HIGH_MIB}M")
        self.wait_until_guest_runs(2)
        pages = [*range(FREE, 2 * FREE, PAGE), *range(LOW_END - MIB, LOW_END, PAGE), *range(HIGH, HIGH + HIGH_MIB * MIB, PAGE)]
        self.poke(*[(gpa, choose.randbytes(64)) for gpa in choose.sample(pages, 20)], (HIGH, b"\1"), (LOW_END - 1, b"\2"))
        self.create(0)
        for number in range(1, LAST + 1):
            self.guest_goes_on()  # and writes, as does somebody else
            chosen = choose.sample(pages, 8)
            self.poke(*[(gpa, bytes(PAGE) if gpa % 3 else choose.randbytes(64)) for gpa in chosen])
            if number == LAST:
                self.good("pause", "vm1")
            made = self.create(number, number - 1)
            self.assertGreaterEqual(made["parent_pages"], 700_000)
            self.assertLess(made["data_pages"], 500)
        self.create("full")
        self.good("snapshot", "chain", "merge", self.place(LAST), self.place("merged"))
        self.assertEqual(self.index("merged"), self.index("full"))
        for name in ("merged", LAST):
            self.good("snapshot", "verify", self.place(name))
        self.good("snapshot", "chain", "prune", self.place(LAST))
        self.assertEqual(sorted(os.listdir(self.snapshots)), [str(LAST), "full", "merged"])
        self.assertEqual(self.index(LAST), self.index("full"))

    def test_a_guest_goes_on_from_a_chain_with_key_and_compression(self):
        key = os.path.join(self.runtime, "key")
        with open(key, "wb") as file:
            file.write(os.urandom(32))
        self.start("--memory", "48M")
        self.wait_until_guest_runs(1)
        self.create(0, options=["--key", key])
        self.poke((FREE, b"\x11\x22"))
        self.create(1, 0, options=["--key", key, "--compress"])
        self.poke((FREE + PAGE, b"\x33\x44"))
        self.create(2, 1, options=["--key", key, "--keep-held"])
        before = self.guest_word(cpu_results_gpa(0) + SLICES_OFFSET)
        self.restore("vm2", 2, "--key", key)
        self.assertEqual(self.peek(hex_gpa(FREE), 2, "vm2") + self.peek(hex_gpa(FREE + PAGE), 2, "vm2"), b"\x11\x22\x33\x44")
        self.assertEqual(self.guest_word(cpu_results_gpa(0) + SLICES_OFFSET, "vm2"), before)
        self.good("resume", "vm2")
        self.guest_goes_on("vm2")

    def test_what_a_guest_was_restored_from_is_a_parent(self):
        self.start("--memory", "48M")
        self.wait_until_guest_runs(1)
        self.poke(*[(FREE + number * PAGE, b"\1") for number in range(100)])
        self.create(0)
        self.restore("vm2", 0)
        self.poke((FREE, b"\2"), vm="vm2")  # while it is held: only by comparison is that seen for certain
        made = self.create(1, 0, vm="vm2")
        self.assertLess(made["data_pages"], 16)
        self.assertEqual(made["parent"], self.place(0))
        self.restore("vm3", 1)
        self.assertEqual(self.peek(hex_gpa(FREE), 1, "vm3") + self.peek(hex_gpa(FREE + PAGE), 1, "vm3"), b"\2\1")

    def test_a_parent_that_cannot_be_one_is_refused_by_name_and_the_guest_goes_on(self):
        self.start("--memory", "48M")
        self.start("--memory", "64M", name="large")
        self.wait_until_guest_runs(1)
        self.create("large", vm="large")
        self.create(0)
        os.mkdir(self.place("empty"))
        key = os.path.join(self.runtime, "key")
        with open(key, "wb") as file:
            file.write(os.urandom(32))
        for status, parent, options, said in (
                (3, "large", [], "has other memory (67108864 bytes at 0x0) than vm1 (50331648 bytes at 0x0)"),
                (1, "none", [], "none: no such directory"),
                (1, "empty", [], "/seal: No such file"),
                (3, 0, ["--key", key], "is not sealed with a key, and one is given")):
            line = self.refused(status, "snapshot", "create", "vm1", self.place("new"), "--parent", self.place(parent), *options)
            self.assertIn(self.place(parent), line)
            self.assertIn(said, line)
        self.create(1, 0)
        with open(os.path.join(self.place(0), "memory.raw"), "r+b") as file:
            file.seek(vm_case.RESULTS_GPA)
            byte = file.read(1)[0]
            file.seek(vm_case.RESULTS_GPA)
            file.write(bytes([byte ^ 1]))
        line = self.refused(3, "snapshot", "create", "vm1", self.place("new"), "--parent", self.place(1))
        self.assertIn(self.place(0) + "/memory.raw: extent 2 ", line)
        self.assertEqual(sorted(os.listdir(self.snapshots)), ["0", "1", "empty", "large"])
        self.assertEqual(self.status()["state"], "running")
        self.guest_goes_on()

    def test_a_member_that_is_missing_foreign_or_out_of_order_is_named_before_a_guest_runs(self):
        self.start("--memory", "48M")
        self.wait_until_guest_runs(1)
        self.create(0)
        for number in (1, 2, 3):
            self.create(number, number - 1)
        self.create("foreign")

        def swap(one, other):
            for source, to in ((one, "aside"), (other, one), ("aside", other)):
                os.rename(self.place(source), self.place(to))

        def refused(named, status=3):
            for words in (["snapshot", "verify", self.place(3)], ["run", "--restore", self.place(3), "--name", "vm2", "--detach"]):
                self.assertIn(self.place(named), self.refused(status, *words))

        swap(1, 2)
        refused(2)
        swap(1, 2)
        swap(0, "foreign")
        refused(0)
        swap(0, "foreign")
        os.rename(self.place(1), self.place("aside"))
        refused(1, status=1)
        os.rename(self.place("aside"), self.place(1))
        memory = os.path.join(self.place(1), "memory.raw")
        os.truncate(memory, 47 * MIB)
        refused(1)
        os.truncate(memory, 48 * MIB)
        self.good("snapshot", "verify", self.place(3))
        self.assertFalse([name for name in self.left_behind() if name.startswith("vm2")])

    def test_paths_and_verbs_that_do_not_fit_are_refused(self):
        self.start("--memory", "48M")
        connection = self.connect()
        for parent in ("here", "", "/x\0y", 7):
            status, answer = connection.ask("POST", "/v1/snapshot", {"directory": self.place(0), "parent": parent})
            self.assertEqual((status, answer["error"]["operation"]), (400, "snapshot create"), parent)
        self.assertIn("--parent", self.refused(2, "snapshot", "info", "x", "--parent", "y"))


if __name__ == "__main__":
    vm_case.main()
