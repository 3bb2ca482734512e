# SPDX-License-Identifier: Apache-2.0
"""pause, resume, hold: counted pauses, and leases that end by themselves."""

import json
import os
import signal
import subprocess
import threading
import unittest

import vm_case
from vm_case import STOPVISOR, VmCase


FULL = os.environ.get("STOPVISOR_TEST_MODE", "quick") != "quick"
SANITIZED = "ASAN_OPTIONS" in os.environ  # set by tests/run.py; a round takes many times as long there


def storm_rounds():
    """Rounds of each of the four clients: 10000 together in a full run."""
    if "STOPVISOR_STORM_ROUNDS" in os.environ:
        return int(os.environ["STOPVISOR_STORM_ROUNDS"])
    if SANITIZED:
        return 300
    return 2500 if FULL else 500


STORM_ROUNDS = storm_rounds()
START_ROUNDS = 500 if FULL and not SANITIZED else 100


class Hold(VmCase):
    def test_pauses_are_counted_and_the_last_resume_lets_go(self):
        self.start("--cpus", 2)
        self.good("pause", "vm1")
        self.assertEqual(json.loads(self.good("pause", "vm1", "--json")), {"vm": "vm1", "holds": 2})
        self.good("resume", "vm1")
        self.assertEqual(self.status()["state"], "held")
        self.good("resume", "vm1")
        self.assertEqual(self.status()["state"], "running")
        self.guest_goes_on()

    def test_a_held_guest_stands_still(self):
        self.start("--cpus", 2)
        self.wait_until_guest_runs(2)
        self.good("pause", "vm1")
        results = [self.peek(vm_case.hex_gpa(vm_case.RESULTS_GPA), 4096) for _ in range(3)]
        self.assertEqual(results[0], results[1])
        self.assertEqual(results[0], results[2])

    def test_resume_without_a_pause_is_refused(self):
        self.start()
        self.assertEqual(self.refused(3, "resume", "vm1"), "stopvisor: resume: vm1: not paused")

    def test_status_names_who_holds(self):
        self.start()
        connection = self.connect()
        self.assertEqual(connection.ask("POST", "/v1/lease", {"max_ms": 60000})[0], 200)
        self.good("pause", "vm1")
        holders = self.status()["holders"]
        self.assertEqual([(holder["kind"], holder["uid"]) for holder in holders],
                         [("lease", os.getuid()), ("pause", os.getuid())])
        self.assertEqual(holders[0]["pid"], os.getpid())
        self.assertLessEqual(holders[0]["left_ms"], 60000)
        self.assertIn("lease", self.good("status", "vm1"))

    def test_resume_never_gives_back_a_lease(self):
        self.start()
        connection = self.connect()
        connection.ask("POST", "/v1/lease", {})
        self.assertIn("a lease of pid", self.refused(3, "resume", "vm1"))
        self.assertEqual(self.status()["state"], "held")

    def test_a_vm_started_paused_has_not_run(self):
        self.start("--paused", "--cpus", 2)
        status = self.status()
        self.assertEqual((status["state"], status["holds"]), ("held", 1))
        self.assertEqual(self.peek(vm_case.hex_gpa(vm_case.RESULTS_GPA), 8), bytes(8))
        self.good("resume", "vm1")
        self.wait_until_guest_runs(2)

    def test_hold_runs_a_command_while_the_guest_is_held(self):
        self.start()
        script = f'test "$STOPVISOR_VM" = vm1 && test -S "$STOPVISOR_SOCKET" && {STOPVISOR} status vm1 --json'
        seen = json.loads(self.good("hold", "vm1", "--", "sh", "-c", script))
        self.assertEqual((seen["state"], seen["holds"]), ("held", 1))
        self.assertEqual(self.status()["holds"], 0)

    def test_hold_returns_the_commands_status(self):
        self.start()
        for script, status in (("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)):
            self.assertEqual(self.stopvisor("hold", "vm1", "--", "sh", "-c", script).returncode, status)
        self.assertEqual(self.status()["holds"], 0)

    def test_hold_takes_options_of_the_command_for_its_own(self):
        self.start()
        self.assertEqual(self.good("hold", "vm1", "--", "echo", "--max", "-x", "--", "status"),
                         "--max -x -- status\n")

    def test_hold_lets_go_when_time_is_up(self):
        self.start()
        line = self.refused(4, "hold", "vm1", "--max", "50ms", "--", "sleep", "1000")
        self.assertIn("time was up", line)
        self.assertEqual(self.status()["holds"], 0)
        self.guest_goes_on()

    def test_hold_kills_a_command_that_ignores_its_sigterm(self):
        self.start()
        self.refused(4, "hold", "vm1", "--max", "50ms", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")

    def test_hold_with_a_command_that_cannot_be_started_lets_go(self):
        self.start()
        self.assertIn("No such file", self.refused(127, "hold", "vm1", "--", "no-such-command"))
        self.assertIn("Permission denied", self.refused(126, "hold", "vm1", "--", "/dev/null"))
        self.assertEqual(self.status()["holds"], 0)

    def test_hold_json_is_one_document_and_the_command_prints_to_stderr(self):
        self.start()
        done = self.stopvisor("hold", "vm1", "--json", "--", "echo", "said")
        document = json.loads(done.stdout)
        self.assertEqual((document["vm"], document["status"]), ("vm1", 0))
        self.assertEqual(done.stderr, "said\n")

    def holding(self, *words):
        """Starts a hold whose command waits for ever; returns once the VM is held."""
        child = subprocess.Popen([STOPVISOR, "hold", "vm1", *words, "--", "sh", "-c", "echo begun; exec sleep 1000"],
                                 env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, start_new_session=True)
        self.addCleanup(lambda: [child.stdout.close(), child.stderr.close()])
        self.addCleanup(child.wait)
        self.assertEqual(child.stdout.readline(), b"begun\n")
        self.assertEqual(self.status()["holds"], 1)
        return child

    def end_commands_of(self, session):
        subprocess.run(["pkill", "-9", "-s", str(session)], check=False)

    def test_kill_9_of_a_holder_lets_the_guest_go_on(self):
        self.start("--cpus", 2)
        child = self.holding()
        self.addCleanup(self.end_commands_of, child.pid)
        child.kill()
        self.eventually(lambda: self.status()["holds"] == 0, "the lease ends")
        self.guest_goes_on()

    def test_a_signal_to_hold_reaches_the_command(self):
        self.start()
        child = self.holding()
        child.terminate()
        self.assertEqual(child.wait(vm_case.LIMIT_S), 128 + signal.SIGTERM)
        self.assertEqual(self.status()["holds"], 0)

    def test_hold_says_when_the_vm_ended_under_it(self):
        self.start()
        done = self.stopvisor("hold", "vm1", "--", STOPVISOR, "shutdown", "vm1", "--now")
        self.assertEqual(done.returncode, 1)
        self.assertIn("the VM ended while the command ran", done.stderr)

    def test_hold_says_when_the_vm_does_not_answer_at_the_end(self):
        pid = self.start()
        self.addCleanup(os.kill, pid, signal.SIGCONT)
        line = self.refused(4, "hold", "vm1", "--timeout", "5s", "--", "sh", "-c",
                            f"kill -STOP {pid}; until grep -q '^State:.T' /proc/{pid}/status; do :; done")
        self.assertEqual(line, "stopvisor: hold: vm1: no answer in time")
        os.kill(pid, signal.SIGCONT)
        self.eventually(lambda: self.status()["holds"] == 0, "the lease ends")

    def test_a_lease_ends_with_its_connection(self):
        self.start()
        connection = self.connect()
        connection.ask("POST", "/v1/lease", {})
        self.assertEqual(self.status()["holds"], 1)
        connection.close()
        self.eventually(lambda: self.status()["holds"] == 0, "the lease ends")

    def test_a_lease_is_ended_once_and_by_its_own_connection_only(self):
        self.start()
        owner, other = self.connect(), self.connect()
        lease = owner.ask("POST", "/v1/lease", {})[1]["id"]
        self.assertEqual(other.ask("DELETE", f"/v1/lease/{lease}")[0], 404)
        self.assertEqual(owner.ask("DELETE", f"/v1/lease/{lease}"), (200, {"holds": 0}))
        self.assertEqual(owner.ask("DELETE", f"/v1/lease/{lease}")[0], 404)

    def test_a_lease_whose_time_was_up_says_so(self):
        self.start()
        connection = self.connect()
        lease = connection.ask("POST", "/v1/lease", {"max_ms": 1})[1]["id"]
        self.eventually(lambda: self.status()["holds"] == 0, "the lease ends")
        status, answer = connection.ask("DELETE", f"/v1/lease/{lease}")
        self.assertEqual((status, answer["error"]["status"]), (503, 4))
        self.assertIn("time was up", answer["error"]["reason"])

    def storm(self, clients, rounds, work):
        """Runs work(connection) `rounds` times in each of `clients` threads, on a connection each."""
        failures = []

        def run(connection):
            try:
                for _ in range(rounds):
                    work(connection)
            except Exception as error:  # the thread's end: reported below
                failures.append(error)

        threads = [threading.Thread(target=run, args=(self.connect(),)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def pause_and_resume(self, connection):
        for target, body in (("/v1/pause", {"timeout_ms": vm_case.STOP_LIMIT_S * 1000}), ("/v1/resume", None)):
            status, answer = connection.ask("POST", target, body)
            self.assertEqual(status, 200, answer)

    def io_is_exact(self, cpus):
        """Under a pause: what the guest sent is what the device got, and nothing was bad, lost or doubled."""
        self.good("pause", "vm1")
        sent = [0, 0, 0, 0]
        for cpu in range(cpus):
            words = self.peek(vm_case.hex_gpa(vm_case.cpu_results_gpa(cpu) + vm_case.IO_OFFSET), 40)
            values = [int.from_bytes(words[at:at + 8], "little") for at in range(0, 40, 8)]
            self.assertEqual(values[4], 0, f"vCPU {cpu}: bad answers")
            self.assertGreater(values[0], 0)
            sent = [total + value for total, value in zip(sent, values)]
        bell = self.status()["doorbell"]
        self.assertEqual((bell["lost"], bell["doubled"]), (0, 0))
        got = [bell["port_writes"], bell["port_reads"], bell["mmio_writes"], bell["mmio_reads"]]
        # One access of each vCPU may be done, and not yet be in its own count, when it is held.
        for ours, theirs in zip(sent, got):
            self.assertTrue(0 <= theirs - ours <= cpus, f"guest {sent}, device {got}")
        self.good("resume", "vm1")

    def test_four_clients_pause_and_resume_in_a_tight_loop_and_nothing_is_lost(self):
        self.start("--cpus", 4, "--cmdline", "scenarios=io")
        self.wait_until_guest_runs(4)
        self.storm(4, STORM_ROUNDS, self.pause_and_resume)
        self.assertEqual(self.status()["holds"], 0)
        self.io_is_exact(4)
        self.guest_goes_on()

    def test_four_clients_pause_and_resume_from_the_first_instruction_on(self):
        self.start("--cpus", 4, "--paused", "--cmdline", "scenarios=io")
        letting_go = threading.Thread(target=self.good, args=("resume", "vm1"))
        letting_go.start()
        self.storm(4, START_ROUNDS, self.pause_and_resume)
        letting_go.join()
        self.wait_until_guest_runs(4)
        self.io_is_exact(4)

    def test_clients_that_die_in_a_storm_take_their_leases_with_them(self):
        self.start("--cpus", 2)

        def lease_and_die(_):
            connection = vm_case.UnixConnection(self.socket_path())
            connection.connect()
            self.assertEqual(connection.ask("POST", "/v1/lease", {})[0], 200)
            connection.close()

        self.storm(4, 50, lease_and_die)
        self.eventually(lambda: self.status()["holds"] == 0, "all leases end")
        self.guest_goes_on()


if __name__ == "__main__":
    vm_case.main()
