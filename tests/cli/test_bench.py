# SPDX-License-Identifier: Apache-2.0
"""bench: that the figures are there. How large they are is nobody's business here."""

import json
import unittest

import vm_case

TIMES = {"p50_ns", "p90_ns", "p99_ns", "max_ns"}
KINDS = {"stop_one_cpu", "stop_of_two", "full_stop"}


@unittest.skipUnless(vm_case.kvm_usable(), "/dev/kvm cannot be used")
class Bench(vm_case.CommandCase):

    def assert_times(self, times):
        self.assertEqual(set(times), TIMES)
        self.assertTrue(0 < times["p50_ns"] <= times["p90_ns"] <= times["p99_ns"] <= times["max_ns"], times)

    def test_stop_has_every_kind_with_and_without_lift(self):
        document = json.loads(self.good("bench", "stop", "--cpus", "1,3", "--rounds", "10", "--json"))
        self.assertEqual([line["cpus"] for line in document["stop"]], [1, 3])
        for line in document["stop"]:
            for name in ("floor", "stop", "release", "socket_pause", "socket_resume", "guest_gap"):
                self.assert_times(line[name])
            for name in ("with_lift", "without_lift"):
                self.assertEqual(set(line[name]), KINDS if line["cpus"] > 1 else KINDS - {"stop_of_two"})
                for times in line[name].values():
                    self.assert_times(times)

    def test_stop_prints_a_row_for_each(self):
        text = self.good("bench", "stop", "--cpus", "2", "--rounds", "10")
        for row in ("stop_one_cpu", "partial stop of 2", "full stop"):
            self.assertIn(row + " ", text)
            self.assertIn(row + ", nobody lifted", text)

    def test_patch_has_every_kind(self):
        document = json.loads(self.good("bench", "patch", "--cpus", "1,2", "--rounds", "10", "--json"))
        self.assertEqual([line["cpus"] for line in document["patch"]], [1, 2])
        for line in document["patch"]:
            for name in ("empty_hold", "apply_hold", "revert_hold", "apply_work", "revert_work", "data_work"):
                self.assert_times(line[name])
        self.assertIn("work under the stop, apply code ", self.good("bench", "patch", "--cpus", "1", "--rounds", "10"))
        self.refused(2, "bench", "patch", "--peer", "qemu")


if __name__ == "__main__":
    vm_case.main()
