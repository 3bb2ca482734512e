# SPDX-License-Identifier: Apache-2.0
"""peek, poke, regs: looking at the guest and changing it, all or nothing."""

import json
import struct
import threading
import unittest

import vm_case
from vm_case import VmCase

FREE_GPA = 0x800000  # memory the guest does not touch


class Memory(VmCase):
    def setUp(self):
        super().setUp()
        self.start("--cpus", 2, "--memory", "256M")
        self.wait_until_guest_runs(2)

    def test_peek_shows_what_poke_wrote(self):
        self.good("poke", "vm1", f"gpa:{FREE_GPA:#x}", "0f 1f 44 00", f"gpa:{FREE_GPA + 16:#x}", "0x53746f70")
        shown = self.good("peek", "vm1", f"gpa:{FREE_GPA:#x}", 20).splitlines()
        self.assertEqual(shown[0], "00000000  0f 1f 44 00 00 00 00 00  00 00 00 00 00 00 00 00  |..D.............|")
        self.assertEqual(shown[1].split("|")[1], "Stop")

    def test_peek_raw_writes_the_bytes_alone(self):
        self.good("poke", "vm1", f"gpa:{FREE_GPA:#x}", "00ff0aff")
        done = self.stopvisor("peek", "vm1", f"gpa:{FREE_GPA:#x}", 4, "--raw", text=False)
        self.assertEqual(done.stdout, b"\x00\xff\x0a\xff")

    def test_lengths_take_units_and_hexadecimal(self):
        for length, count in (("1M", 1 << 20), ("4K", 4096), ("0x10", 16)):
            self.assertEqual(len(self.peek(f"gpa:{FREE_GPA:#x}", length)), count)

    def test_poke_expects_and_refuses_as_one(self):
        first, second = f"gpa:{FREE_GPA:#x}", f"gpa:{FREE_GPA + 0x2000:#x}"
        self.good("poke", "vm1", first, "11", second, "22")
        line = self.refused(3, "poke", "vm1", first, "aa", second, "bb", "--expect", "11", "--expect", "33")
        self.assertEqual(line, f"stopvisor: poke: vm1: write 2 ({second}): expected 33, found 22; nothing was written")
        self.assertEqual((self.peek(first, 1), self.peek(second, 1)), (b"\x11", b"\x22"))
        self.good("poke", "vm1", first, "aa", second, "bb", "--expect", "11", "--expect", "22")
        self.assertEqual((self.peek(first, 1), self.peek(second, 1)), (b"\xaa", b"\xbb"))

    def test_of_pairs_that_overlap_the_later_one_stays(self):
        first, second = f"gpa:{FREE_GPA:#x}", f"gpa:{FREE_GPA + 1:#x}"
        self.good("poke", "vm1", first, "1122", second, "33", first, "44")
        self.assertEqual(self.peek(first, 2), b"\x44\x33")
        self.refused(3, "poke", "vm1", first, "55", first, "66", "--expect", "44", "--expect", "55")
        self.good("poke", "vm1", first, "55", first, "66", "--expect", "44", "--expect", "44")  # of what was before
        self.assertEqual(self.peek(first, 2), b"\x66\x33")

    def test_a_bad_address_among_good_ones_writes_nothing(self):
        good = f"gpa:{FREE_GPA:#x}"
        self.refused(1, "poke", "vm1", good, "aa", "gpa:0x999999999", "bb")
        self.assertEqual(self.peek(good, 1), b"\x00")

    def test_addresses_outside_memory_are_named(self):
        line = self.refused(1, "peek", "vm1", "gpa:0x999999999", 4)
        self.assertTrue(line.startswith("stopvisor: peek: vm1: gpa:0x999999999: "), line)
        self.refused(1, "peek", "vm1", "gpa:0xfffffff", 4)  # the last byte of memory, and three behind it

    def test_virtual_addresses_are_walked_by_the_named_vcpu(self):
        for suffix in ("", "@1"):
            self.assertEqual(self.peek(f"gva:{vm_case.RESULTS_GPA:#x}{suffix}", 8), b"SVPROBE1")
        self.good("poke", "vm1", f"gva:{FREE_GPA + 0xffe:#x}@1", "01020304")  # over a page's end
        self.assertEqual(self.peek(f"gpa:{FREE_GPA + 0xffe:#x}", 4), b"\x01\x02\x03\x04")

    def test_unmapped_virtual_addresses_are_named(self):
        line = self.refused(1, "peek", "vm1", "gva:0x7fff00000000", 8)
        self.assertIn("gva:0x7fff00000000", line)
        self.refused(2, "peek", "vm1", f"gva:{FREE_GPA:#x}@2", 8)

    def test_memory_and_registers_can_be_seen_while_held(self):
        self.good("pause", "vm1")
        self.assertEqual(self.peek(f"gpa:{vm_case.RESULTS_GPA:#x}", 8), b"SVPROBE1")
        self.good("poke", "vm1", f"gpa:{FREE_GPA:#x}", "77")
        first, again = (json.loads(self.good("regs", "vm1", "--json"))["cpus"] for _ in range(2))
        self.assertEqual(first, again)

    def test_registers_are_those_of_code_at_cpl_3(self):
        cpus = json.loads(self.good("regs", "vm1", "--json"))["cpus"]
        self.assertEqual([cpu["cpu"] for cpu in cpus], [0, 1])
        for cpu in cpus:
            self.assertEqual(cpu["efer"] & 0x500, 0x500)  # long mode, on and active
        one = json.loads(self.good("regs", "vm1", "--cpu", "1", "--json"))["cpus"]
        self.assertEqual([cpu["cpu"] for cpu in one], [1])
        self.assertIn("vCPU 1", self.good("regs", "vm1", "--cpu", "1"))
        self.assertIn("no vCPU 2: it has 0 to 1", self.refused(2, "regs", "vm1", "--cpu", "2"))

    def test_the_ledger_is_never_torn_by_pokes(self):
        def words(value):
            pairs = []
            for word in range(64):
                gpa = vm_case.LEDGER_GPA + word % 8 * 0x1000 + word // 8 * 0x1c0 + 8
                pairs.append({"address": vm_case.hex_gpa(gpa), "bytes": struct.pack("<Q", value).hex()})
            return pairs

        def reads_and_torn(cpu):
            at = vm_case.cpu_results_gpa(cpu) + 48 + 48 * 8
            return struct.unpack("<QQ", self.peek(vm_case.hex_gpa(at), 16))

        connection = self.connect()
        for value in range(1, 201):
            status, answer = connection.ask("POST", "/v1/poke", {"writes": words(value)})
            self.assertEqual((status, answer.get("writes")), (200, 64), answer)
        for cpu in range(2):
            before, _ = reads_and_torn(cpu)
            self.eventually(lambda cpu=cpu, before=before: reads_and_torn(cpu)[0] > before, "the guest looks once more")
            self.assertEqual(reads_and_torn(cpu)[1], 0)

    def test_only_one_of_many_compare_and_writes_wins(self):
        wins = []

        def increment(connection):
            for value in range(100):
                status, answer = connection.ask("POST", "/v1/poke", {"writes": [
                    {"address": vm_case.hex_gpa(FREE_GPA), "expect": struct.pack("<I", value).hex(),
                     "bytes": struct.pack("<I", value + 1).hex()}]})
                if status == 200:
                    wins.append(value)
                elif status != 409:
                    wins.append(answer)

        threads = [threading.Thread(target=increment, args=(self.connect(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        final = struct.unpack("<I", self.peek(vm_case.hex_gpa(FREE_GPA), 4))[0]
        self.assertEqual(sorted(wins), list(range(final)))

    def test_no_stop_writes_while_the_guest_runs(self):
        self.good("poke", "vm1", f"gpa:{FREE_GPA:#x}", "5a", "--no-stop")
        self.assertEqual(self.peek(f"gpa:{FREE_GPA:#x}", 1), b"\x5a")
        self.refused(2, "poke", "vm1", f"gva:{FREE_GPA:#x}", "5a", "--no-stop")


if __name__ == "__main__":
    vm_case.main()
