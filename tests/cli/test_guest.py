# SPDX-License-Identifier: Apache-2.0
"""guest, sym: addresses, and what status and regs tell of vCPUs: on the probe guest, which is no Linux.

A real Linux guest is looked into in the lab (tests/lab), and one made by hand in tests/unit/linux.
"""

import json
import tempfile
import unittest

import raw_guest
import vm_case
from vm_case import VmCase

NO_LINUX = "the guest is the built-in probe guest, which is no Linux"


class Guest(VmCase):
    def setUp(self):
        super().setUp()
        self.start("--cpus", 2, "--memory", "256M")
        self.wait_until_guest_runs(2)

    def test_guest_that_is_no_linux_is_refused(self):
        self.assertEqual(self.refused(3, "guest", "vm1"), f"stopvisor: guest: vm1: {NO_LINUX}")
        self.assertEqual(self.refused(3, "peek", "vm1", "sym:linux_banner", 64), f"stopvisor: peek: vm1: {NO_LINUX}")
        self.refused(3, "poke", "vm1", "gpa:0x800000", "aa", "sym:panic_timeout", "00")
        self.assertEqual(self.peek("gpa:0x800000", 1), b"\x00")

    def test_registers_are_shown_without_symbols(self):
        document = json.loads(self.good("regs", "vm1", "--json"))
        self.assertEqual(document["why_no_symbols"], NO_LINUX)
        for cpu in document["cpus"]:
            self.assertIn(cpu["state"], ("guest", "host", "halted"))
            self.assertIsNone(cpu["symbol"])
        with tempfile.NamedTemporaryFile() as file:  # symbols that were asked for are not left out in silence
            self.refused(3, "regs", "vm1", "--symbols", file.name)

    def test_status_tells_what_vcpus_do(self):
        self.good("cpu", "vm1", "--offline", 1)
        first, second = self.status()["vcpus"]
        self.assertIn(first["doing"], ("guest", "host", "halted"))
        self.assertEqual(second["doing"], "offline")
        # But for its timer's interrupts, which it takes at CPL 0.
        self.eventually(lambda: self.status()["vcpus"][0]["cpl"] == 3, "the guest works at CPL 3")
        self.assertGreater(first["cr3"], 0)
        self.assertGreater(first["rip"], 0)

    def test_status_of_a_held_vm_is_taken_under_its_hold(self):
        self.good("pause", "vm1")
        first, again = (self.status()["vcpus"] for _ in range(2))
        self.assertEqual([cpu["rip"] for cpu in first], [cpu["rip"] for cpu in again])
        self.assertEqual(self.status()["state"], "held")

    def test_status_without_a_stop_makes_none(self):
        before = json.loads(self.good("status", "vm1", "--no-stop", "--json"))
        after = json.loads(self.good("status", "vm1", "--no-stop", "--json"))
        self.assertEqual(before["last_stop"], after["last_stop"])
        self.assertNotIn("doing", after["vcpus"][0])

    def test_bad_symbol_addresses_are_usage_errors(self):
        for address in ("sym:", "sym:f+8", "sym:f@x", "sym:+0x8"):
            self.refused(2, "peek", "vm1", address, 8)


class SymbolFiles(VmCase):
    """--symbols with a file that cannot be used, of a guest that might be a Linux: the file is named, and why."""

    def test_a_file_that_cannot_be_used_is_named(self):
        self.start_raw(raw_guest.echo())
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"ffffffff81000000 T _text\n")
            file.flush()
            for path, status, reason in (
                    ("/nonexistent", 1, "No such file or directory"),
                    ("/dev/null", 2, "is no regular file"),
                    (__file__, 2, "it is no ELF, and as a System.map its line 1 is not"),
                    (file.name, 3, "")):
                for words in (("regs", "vm1"), ("guest", "vm1"), ("status", "vm1"), ("peek", "vm1", "sym:a", 1),
                              ("poke", "vm1", "sym:a", "00")):
                    with self.subTest(path=path, words=words):
                        line = self.refused(status, *words, "--symbols", path)
                        self.assertIn(path, line)
                        self.assertIn(reason, line)


if __name__ == "__main__":
    vm_case.main()
