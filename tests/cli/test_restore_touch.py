# SPDX-License-Identifier: Apache-2.0
"""run --restore --verify touch, --prefault and --share: a guest that starts before its memory is there."""

import json
import os
import struct
import unittest

import raw_guest
import vm_case
from vm_case import CPU_RESULTS_BYTES, IO_OFFSET, LEDGER_GPA, RESULTS_GPA, SLICES_OFFSET, VmCase, cpu_results_gpa, hex_gpa

CPUS = 2
MIB = 1 << 20
FREE = 0x1800000  # memory that the guest does not touch: extent 24
MARK = bytes(range(1, 65))
GENERATION_GPA = 0xfe000  # vmm/acpi/platform.h, kGenerationIdGpa
RESULTS_BYTES = vm_case.CPU_RESULTS_OFFSET + CPUS * CPU_RESULTS_BYTES


def slices(results, cpu):
    return struct.unpack_from("<Q", results, vm_case.CPU_RESULTS_OFFSET + cpu * CPU_RESULTS_BYTES + SLICES_OFFSET)[0]


def extent_of(gpa):
    return gpa // MIB


class Touch(VmCase):
    def setUp(self):
        super().setUp()
        self.place = os.path.join(self.runtime, "snapshot")
        self.start("--cpus", CPUS, "--memory", "48M")
        self.wait_until_guest_runs(CPUS)
        self.good("poke", "vm1", hex_gpa(FREE), MARK.hex())

    def create(self, *options, place=None):
        self.good("snapshot", "create", "vm1", place or self.place, "--keep-held", *options)
        self.before = self.counters()

    def counters(self, name="vm1"):
        return self.peek(hex_gpa(RESULTS_GPA), RESULTS_BYTES, name) + self.peek(hex_gpa(LEDGER_GPA), 4096, name)

    def restore(self, name, *options, place=None):
        started = self.good("run", "--restore", place or self.place, "--name", name, "--detach", "--json", *options)
        self.pids.append(json.loads(started)["pid"])
        return self.pids[-1]

    def goes_on_exactly(self, name):
        """A clone that is held has what was saved; let go, it counts on from there without a wrong access."""
        self.assertEqual(self.counters(name), self.before)
        self.assertEqual(self.peek(hex_gpa(FREE), len(MARK), name), MARK)
        self.good("resume", name)
        for cpu in range(CPUS):
            at = cpu_results_gpa(cpu) + SLICES_OFFSET
            self.eventually(lambda at=at, cpu=cpu: self.guest_word(at, name) > slices(self.before, cpu) + 2, f"{name} goes on")
            self.assertEqual(self.guest_word(cpu_results_gpa(cpu) + IO_OFFSET + 32, name), 0)

    def jobs(self, name):
        return self.connect(name).ask("GET", "/v1/jobs")[1]["jobs"]

    def mapped(self, pid):
        """KiB of the snapshot's file that are in memory: all of it, and what others have as well."""
        total = {"Rss": 0, "Shared_Clean": 0, "Shared_Dirty": 0}
        ours = False
        with open(f"/proc/{pid}/smaps", encoding="ascii") as file:
            for line in file:
                words = line.split()
                if "-" in words[0] and not words[0].endswith(":"):
                    ours = line.rstrip().endswith("/memory.raw")
                elif ours and words[0][:-1] in total:
                    total[words[0][:-1]] += int(words[1])
        return total

    def flip(self, file, at):
        with open(os.path.join(self.place, file), "r+b") as stream:
            stream.seek(at)
            byte = stream.read(1)
            stream.seek(at)
            stream.write(bytes([byte[0] ^ 1]))

    def key(self):
        path = os.path.join(self.runtime, "key")
        with open(path, "wb") as file:
            file.write(os.urandom(32))
        return path


@unittest.skipUnless(vm_case.may_watch_memory(), "userfaultfd cannot be used")
class OnTouch(Touch):
    def test_a_guest_goes_on_where_it_was(self):
        self.create()
        self.restore("vm2", "--verify", "touch", "--paused")
        self.goes_on_exactly("vm2")

    def test_one_that_is_compressed_and_sealed_too(self):
        key = self.key()
        self.create("--compress", "--key", key)
        self.restore("vm2", "--verify", "touch", "--key", key, "--paused")
        self.goes_on_exactly("vm2")

    def test_a_chain_too(self):
        self.good("snapshot", "create", "vm1", self.place + "0")
        self.guest_goes_on()
        self.create("--parent", self.place + "0", "--compress")
        self.restore("vm2", "--verify", "touch", "--paused")
        self.goes_on_exactly("vm2")

    def test_in_a_memfd_too(self):
        self.create()
        self.restore("vm2", "--verify", "touch", "--memory-backing", "memfd", "--paused")
        self.goes_on_exactly("vm2")

    def test_prefault_is_a_job_that_ends(self):
        self.create()
        self.restore("vm2", "--prefault", "--paused")
        self.eventually(lambda: self.jobs("vm2")[0]["state"] != "running", "all memory is there")
        job = self.jobs("vm2")[0]
        self.assertEqual((job["operation"], job["state"], job["done_bytes"]), ("restore", "done", 48 * MIB))
        os.truncate(os.path.join(self.place, "memory.raw"), 0)  # nobody needs it any more
        self.goes_on_exactly("vm2")

    def test_snapshots_are_taken_of_one_whose_memory_is_not_there_yet(self):
        self.create()
        self.restore("vm2", "--verify", "touch", "--paused")
        self.good("snapshot", "create", "vm2", self.place + "2")
        self.good("snapshot", "verify", self.place + "2")
        self.restore("vm3", "--paused", place=self.place + "2")
        self.goes_on_exactly("vm3")

    def test_a_live_snapshot_brings_in_what_is_not_there(self):
        self.create()
        self.restore("vm2", "--verify", "touch", "--paused")
        self.good("snapshot", "create", "vm2", self.place + "2", "--live")
        self.restore("vm3", "--paused", place=self.place + "2")
        self.goes_on_exactly("vm3")
        self.goes_on_exactly("vm2")

    def test_a_bad_extent_ends_the_vm_by_name_and_nobody_sees_it(self):
        self.create()
        self.flip("memory.raw", FREE + 8)
        pid = self.restore("vm2", "--verify", "touch")
        self.guest_goes_on("vm2")  # which does not touch it
        done = self.stopvisor("peek", "vm2", hex_gpa(FREE + 4096), 8)  # another page of it
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout, "")
        self.eventually(lambda: not vm_case.alive(pid), "the VM has ended")
        with open(os.path.join(self.directory, "vm2.log"), encoding="utf-8") as log:
            self.assertIn(f"stopvisor: run: restore: {self.place}/memory.raw: extent {extent_of(FREE)} is not what its checksum says\n",
                          log.read())
        self.assertNotIn("vm2.sock", self.left_behind())

    def test_a_bad_extent_ends_a_guest_that_touches_it(self):
        self.create()
        self.flip("memory.raw", RESULTS_GPA + 8)
        child = self.stopvisor("run", "--restore", self.place, "--name", "vm2", "--verify", "touch", "--serial", "none")
        self.assertEqual(child.returncode, 1)
        self.assertIn(f"stopvisor: run: restore: {self.place}/memory.raw: extent {extent_of(RESULTS_GPA)} is not what its checksum says\n",
                      child.stderr)

    def test_a_bad_extent_that_the_start_needs_is_refused(self):
        self.create()
        self.flip("memory.raw", GENERATION_GPA)
        line = self.refused(3, "run", "--restore", self.place, "--name", "vm2", "--verify", "touch", "--detach")
        self.assertIn(f"{self.place}/memory.raw: extent 0 is not what its checksum says", line)

    def test_a_log_is_emptied_only_by_a_guest_that_starts(self):
        self.create()
        serial = os.path.join(self.runtime, "serial")
        with open(serial, "wb") as log:
            log.write(b"of the last guest")
        self.flip("memory.raw", GENERATION_GPA)
        words = ("--verify", "touch", "--serial", "file:" + serial)
        self.refused(3, "run", "--restore", self.place, "--name", "vm2", "--detach", *words)
        self.assertEqual(os.path.getsize(serial), 17)
        self.flip("memory.raw", GENERATION_GPA)
        self.restore("vm2", *words)
        self.guest_goes_on("vm2")
        with open(serial, "rb") as log:
            self.assertNotIn(b"last guest", log.read())

    def test_prefault_finds_a_bad_extent_that_nobody_touches(self):
        self.create()
        self.flip("memory.raw", FREE)
        child = self.stopvisor("run", "--restore", self.place, "--name", "vm2", "--prefault", "--serial", "none", "--paused")
        self.assertEqual(child.returncode, 1)
        self.assertIn(f"extent {extent_of(FREE)} is not", child.stderr)

    def test_a_file_that_is_cut_off_later_ends_the_vm_by_name(self):
        self.create()
        pid = self.restore("vm2", "--verify", "touch", "--paused")
        os.truncate(os.path.join(self.place, "memory.raw"), FREE)
        self.assertNotEqual(self.stopvisor("peek", "vm2", hex_gpa(FREE), 8).returncode, 0)
        self.eventually(lambda: not vm_case.alive(pid), "the VM has ended")
        with open(os.path.join(self.directory, "vm2.log"), encoding="utf-8") as log:
            self.assertIn("memory.raw: shrank while it was read", log.read())


class AtStart(Touch):
    def test_pages_of_zeros_cost_nothing(self):
        self.create()
        pid = self.restore("vm2", "--paused")
        self.assertLess(self.resident_of_guest(pid), 24 << 10)  # of 48 MiB; the guest has used some 10
        self.goes_on_exactly("vm2")

    def resident_of_guest(self, pid):
        """KiB of the guest's memory that are there."""
        resident = size = 0
        with open(f"/proc/{pid}/smaps", encoding="ascii") as file:
            for line in file:
                words = line.split()
                if words[0] == "Size:":
                    size = int(words[1])
                elif words[0] == "Rss:" and size == 48 << 10:
                    resident += int(words[1])
        self.assertGreater(resident, 0, "its mapping was not found")
        return resident


class Shared(Touch):
    def test_clones_share_the_pages_of_the_file_and_are_others(self):
        self.create()
        names = ("vm2", "vm3", "vm4")
        pids = [self.restore(name, "--share", "--paused") for name in names]
        generations = {self.peek(hex_gpa(GENERATION_GPA), 16, name) for name in ("vm1", *names)}
        self.assertEqual(len(generations), 4)
        for name in names:
            self.assertEqual(self.peek(hex_gpa(FREE), len(MARK), name), MARK)
        for pid in pids:
            self.assertGreater(self.mapped(pid)["Shared_Clean"] + self.mapped(pid)["Shared_Dirty"], 0)  # dirty: of a tmpfs
        self.good("poke", "vm2", hex_gpa(FREE), "ff")
        self.assertEqual(self.peek(hex_gpa(FREE), 1, "vm2"), b"\xff")
        for name in ("vm3", "vm4"):
            self.goes_on_exactly(name)
        self.good("snapshot", "verify", self.place)

    def test_no_live_snapshot_is_taken_of_a_file(self):
        self.create()
        self.restore("vm2", "--share")
        self.assertIn("its memory is a snapshot's file", self.refused(3, "snapshot", "create", "vm2", self.place + "2", "--live"))
        self.guest_goes_on("vm2")

    def test_what_was_changed_is_refused_before_a_guest_runs(self):
        self.create()
        self.flip("memory.raw", FREE)
        self.assertIn(f"extent {extent_of(FREE)} is not what its checksum says",
                      self.refused(3, "run", "--restore", self.place, "--name", "vm2", "--share", "--detach"))
        self.flip("memory.raw", FREE)
        self.flip("memory.raw", FREE + 3 * MIB)  # a hole
        self.assertIn("has bytes where it should have none",
                      self.refused(3, "run", "--restore", self.place, "--name", "vm2", "--share", "--detach"))

    def test_what_cannot_be_shared_is_refused(self):
        key = self.key()
        self.create("--key", key)
        self.assertIn("sealed with a key", self.refused(3, "run", "--restore", self.place, "--key", key, "--share", "--detach"))
        self.create("--compress", place=self.place + "2")
        self.assertIn("is compressed or incremental", self.refused(3, "run", "--restore", self.place + "2", "--share", "--detach"))

    def test_options_that_do_not_go_together_are_named(self):
        for words, said in ((["--verify", "touch"], "goes with --restore"),
                            (["--prefault"], "goes with --restore"),
                            (["--share"], "goes with --restore"),
                            (["--restore", "x", "--verify", "never"], "must be start or touch"),
                            (["--restore", "x", "--verify", "start", "--prefault"], "goes with --verify touch"),
                            (["--restore", "x", "--share", "--verify", "touch"], "goes with --verify start"),
                            (["--restore", "x", "--share", "--memory-backing", "memfd"], "a memory backing of its own")):
            self.assertIn(said, self.refused(2, "run", *words))


class Reset(VmCase):
    def reset_after(self, *options):
        """The guest resets itself: of the snapshot's memory nothing is left, neither what was touched nor what was not."""
        free = (0x280000, 0x380000)
        place = os.path.join(self.runtime, "snapshot")
        self.start_raw(raw_guest.say(b"up ") + raw_guest.reset_when_told())
        self.eventually(lambda: self.good("console", "vm1", "--log") == "up ", "its start")
        for gpa in free:
            self.good("poke", "vm1", hex_gpa(gpa), "4242")
        self.good("snapshot", "create", "vm1", place)
        started = self.good("run", "--restore", place, "--name", "vm2", "--detach", "--json", *options)
        self.pids.append(json.loads(started)["pid"])
        self.assertEqual(self.peek(hex_gpa(free[0]), 2, "vm2"), b"\x42\x42")
        connection = self.connect("vm2")
        connection.sock.sendall(b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: stopvisor-console\r\n\r\nx")
        self.eventually(lambda: self.status("vm2")["resets"] == 1, "the reset")
        self.eventually(lambda: self.good("console", "vm2", "--log").endswith("up "), "its second start")
        for gpa in free:
            self.assertEqual(self.peek(hex_gpa(gpa), 2, "vm2"), b"\0\0")

    @unittest.skipUnless(vm_case.may_watch_memory(), "userfaultfd cannot be used")
    def test_memory_that_was_not_there_yet_is_zeros_after_a_reset(self):
        self.reset_after("--verify", "touch")

    def test_memory_of_a_file_is_zeros_after_a_reset(self):
        self.reset_after("--share")


if __name__ == "__main__":
    vm_case.main()
