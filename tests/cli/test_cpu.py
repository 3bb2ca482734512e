# SPDX-License-Identifier: Apache-2.0
"""cpu: vCPUs that come and go while the probe guest works on all it has."""

import json
import os
import threading

import vm_case
from vm_case import VmCase

STARTS_OFFSET = 576  # of CpuResults in guest/probe_abi.h


class Cpu(VmCase):
    def counter(self, cpu, offset=vm_case.SLICES_OFFSET):
        return self.guest_word(vm_case.cpu_results_gpa(cpu) + offset)

    def states(self):
        listed = json.loads(self.good("cpu", "vm1", "--json"))
        self.assertEqual([cpu["cpu"] for cpu in listed["cpus"]], list(range(len(listed["cpus"]))))
        return [cpu["state"] for cpu in listed["cpus"]]

    def test_an_added_vcpu_is_brought_into_work_by_the_guest(self):
        self.start("--cpus", 1)
        self.wait_until_guest_runs(1)
        self.assertEqual(self.good("cpu", "vm1", "--add"), "vCPU 1: online\n")
        self.wait_until_guest_runs(2)
        self.assertEqual(self.good("cpu", "vm1", "--add", "2"), "vCPU 2: online\nvCPU 3: online\n")
        self.wait_until_guest_runs(4)
        self.assertEqual(self.states(), ["online"] * 4)
        status = self.status()
        self.assertEqual((status["cpus"], status["max_cpus"], len(status["vcpus"])), (4, 32, 4))
        for vcpu in status["vcpus"]:
            self.assertTrue(os.path.isdir(f"/proc/{status['pid']}/task/{vcpu['tid']}"))

    def test_an_offline_vcpu_stands_still_until_it_is_online_again(self):
        self.start("--cpus", 3)
        self.wait_until_guest_runs(3)
        for turn in range(1, 6):
            self.assertEqual(json.loads(self.good("cpu", "vm1", "--offline", 1, "--json")),
                             {"vm": "vm1", "cpu": 1, "state": "offline", "forced": False})
            self.assertEqual(self.states(), ["online", "offline", "online"])
            before = self.counter(1)
            self.guest_goes_on(cpu=0)
            self.guest_goes_on(cpu=2)
            self.assertEqual(self.counter(1), before)
            self.assertEqual(self.good("cpu", "vm1", "--online", 1), "vCPU 1: online\n")
            self.guest_goes_on(cpu=1)
            self.assertEqual(self.counter(1, STARTS_OFFSET), turn + 1)
        self.good("shutdown", "vm1")

    def test_what_cannot_be_done_is_refused(self):
        self.start("--cpus", 2, "--max-cpus", 3)
        self.wait_until_guest_runs(2)
        self.assertIn("vCPU 0", self.refused(3, "cpu", "vm1", "--offline", 0))
        self.assertIn("no vCPU 2: it has 0 to 1", self.refused(2, "cpu", "vm1", "--offline", 2))
        self.assertIn("vCPU 1 is online", self.refused(3, "cpu", "vm1", "--online", 1))
        self.assertIn("2 of at most 3 vCPUs", self.refused(3, "cpu", "vm1", "--add", "2"))
        self.assertEqual(self.states(), ["online"] * 2)
        self.good("cpu", "vm1", "--add")
        self.assertIn("has all the 3 vCPUs", self.refused(3, "cpu", "vm1", "--add"))
        for words in (("--add", "0"), ("--add", "x"), ("--offline", "x"), ("--online", "-1"), ("--force",),
                      ("--list", "--add"), ("--offline", "1", "--online", "1"), ("--add", "--timeout", "0s")):
            self.refused(2, "cpu", "vm1", *words)
        self.refused(2, "run", "--cpus", 3, "--max-cpus", 2)
        self.refused(2, "run", "--max-cpus", 100000)
        self.assertEqual(self.states(), ["online"] * 3)

    def test_a_held_vm_is_busy_and_nothing_is_changed(self):
        self.start("--cpus", 2)
        self.wait_until_guest_runs(2)
        self.good("cpu", "vm1", "--add")
        self.good("cpu", "vm1", "--offline", 2)
        self.good("pause", "vm1")
        for words in (("--add",), ("--offline", 1), ("--offline", 1, "--force"), ("--online", 2)):
            self.assertIn("held", self.refused(4, "cpu", "vm1", *words, "--timeout", "50ms"))
        self.assertEqual(self.states(), ["online", "online", "offline"])
        self.good("resume", "vm1")
        self.guest_goes_on(cpu=1)
        self.good("cpu", "vm1", "--online", 2)
        self.guest_goes_on(cpu=2)

    def test_the_api_takes_no_nonsense(self):
        self.start("--cpus", 2)
        connection = self.connect()
        for method, target, body, http in (
                ("POST", "/v1/cpus/x/offline", None, 400), ("POST", "/v1/cpus//offline", None, 404),
                ("POST", "/v1/cpus/99999999999/online", None, 400), ("POST", "/v1/cpus/1", None, 404),
                ("POST", "/v1/cpus/1/offline/now", None, 404), ("GET", "/v1/cpus/1/offline", None, 405),
                ("POST", "/v1/cpus", {"count": 2}, 400), ("POST", "/v1/cpus/1/offline", {"force": 1}, 400),
                ("POST", "/v1/cpus/1/online", {"force": True}, 400), ("GET", "/v1/cpus?cpu=1", None, 400),
                ("DELETE", "/v1/cpus", None, 405)):
            with self.subTest(method=method, target=target, body=body):
                self.assertEqual(connection.ask(method, target, body)[0], http)
        self.assertEqual(self.states(), ["online"] * 2)

    def test_clients_at_once_get_numbers_of_their_own(self):
        self.start("--cpus", 1, "--max-cpus", 9)
        self.wait_until_guest_runs(1)
        answers = []

        def add(connection):
            for _ in range(3):
                answers.append(connection.ask("POST", "/v1/cpus", {"timeout_ms": 60000}))

        threads = [threading.Thread(target=add, args=(self.connect(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(answer["cpu"] for http, answer in answers if http == 200), list(range(1, 9)))
        self.assertEqual([answer["error"]["status"] for http, answer in answers if http != 200], [3] * 4)
        self.wait_until_guest_runs(9)


if __name__ == "__main__":
    vm_case.main()
