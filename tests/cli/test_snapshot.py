# SPDX-License-Identifier: Apache-2.0
"""snapshot and run --restore: a VM on disk, and one that goes on from there."""

import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import unittest

import vm_case
from vm_case import CPU_RESULTS_BYTES, IO_OFFSET, LEDGER_GPA, RESULTS_GPA, SLICES_OFFSET, VmCase, cpu_results_gpa, hex_gpa

CPUS = 2
GENERATION_GPA = 0xfe000  # vmm/acpi/platform.h, kGenerationIdGpa
RESULTS_BYTES = vm_case.CPU_RESULTS_OFFSET + CPUS * CPU_RESULTS_BYTES
LEDGER_BYTES = 4096


def slices(results, cpu):
    return struct.unpack_from("<Q", results, vm_case.CPU_RESULTS_OFFSET + cpu * CPU_RESULTS_BYTES + SLICES_OFFSET)[0]


def blocks(pid, number):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        blocked = next((line for line in file if line.startswith("SigBlk:")), "SigBlk: 0")
    return int(blocked.split()[1], 16) >> (number - 1) & 1 == 1


class Interrupted(vm_case.CommandCase):
    """Ctrl-C at a moment that we choose: the VM is played by us. Needs no KVM."""

    def setUp(self):
        super().setUp()
        os.mkdir(self.directory, 0o700)
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(self.listening.close)
        self.listening.bind(os.path.join(self.directory, "vm1.sock"))
        self.listening.listen()
        self.listening.settimeout(vm_case.LIMIT_S)
        self.child = subprocess.Popen([vm_case.STOPVISOR, "snapshot", "create", "vm1", "/nowhere"], env=self.env, text=True,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.child.communicate)
        self.addCleanup(self.child.kill)
        self.client, _ = self.listening.accept()
        self.addCleanup(self.client.close)
        self.client.settimeout(vm_case.LIMIT_S)

    def asked(self):
        """The next request's first line."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.client.recv(4096)
            self.assertTrue(piece, "the command has gone")
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        while length and len(body) < int(length[1]):
            body += self.client.recv(4096)
        return head.split(b"\r\n")[0].decode()

    def answer(self, document):
        body = json.dumps(document).encode()
        self.client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def is_called_off(self):
        """What comes next, once the signal is there."""
        self.assertEqual(self.asked(), "POST /v1/jobs/7/cancel HTTP/1.1")
        self.answer({})
        self.assertEqual(self.asked(), "GET /v1/jobs/7?wait_ms=200 HTTP/1.1")
        self.answer({"state": "cancelled", "error": {"object": "vm1", "reason": "was called off", "status": 1}})
        _, said = self.child.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual((self.child.returncode, said), (1, "stopvisor: snapshot create: vm1: was called off\n"))

    def test_a_job_whose_number_is_not_known_yet_is_called_off_when_it_is(self):
        self.assertEqual(self.asked(), "POST /v1/snapshot HTTP/1.1")
        self.child.send_signal(signal.SIGINT)
        self.answer({"job": 7})
        self.is_called_off()

    def test_a_job_that_is_watched_is_called_off(self):
        self.assertEqual(self.asked(), "POST /v1/snapshot HTTP/1.1")
        self.answer({"job": 7})
        self.assertEqual(self.asked(), "GET /v1/jobs/7?wait_ms=200 HTTP/1.1")
        self.child.send_signal(signal.SIGTERM)
        self.answer({"state": "running"})
        self.is_called_off()


    def test_a_signal_that_comes_too_late_takes_no_result_away(self):
        self.assertEqual(self.asked(), "POST /v1/snapshot HTTP/1.1")
        self.answer({"job": 7})
        self.assertEqual(self.asked(), "GET /v1/jobs/7?wait_ms=200 HTTP/1.1")
        self.child.send_signal(signal.SIGINT)
        self.answer({"state": "done", "result": {"directory": "/nowhere", "data_pages": 1, "held_us": 1, "disks": 0,
                                                 "sealed": False, "held": False}})
        printed, said = self.child.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual((self.child.returncode, said), (0, ""))
        self.assertIn("/nowhere: ", printed)


class Snapshot(VmCase):
    def setUp(self):
        super().setUp()
        self.place = os.path.join(self.runtime, "snapshot")
        self.start("--cpus", CPUS, "--memory", "48M")
        self.wait_until_guest_runs(CPUS)

    def counters(self, name="vm1"):
        return self.peek(hex_gpa(RESULTS_GPA), RESULTS_BYTES, name) + self.peek(hex_gpa(LEDGER_GPA), LEDGER_BYTES, name)

    def state(self, name="vm1"):
        return self.status(name)["state"]

    def restore(self, name, *options, place=None):
        pid = json.loads(self.good("run", "--restore", place or self.place, "--name", name, "--detach", "--json", *options))["pid"]
        self.pids.append(pid)

    def wait_until_all_go_on(self, name, before):
        for cpu in range(CPUS):
            at = cpu_results_gpa(cpu) + SLICES_OFFSET
            self.eventually(lambda at=at, cpu=cpu: self.guest_word(at, name) > slices(before, cpu) + 2, f"{name} goes on")

    def no_access_is_wrong(self, name):
        for cpu in range(CPUS):
            self.assertEqual(self.guest_word(cpu_results_gpa(cpu) + IO_OFFSET + 32, name), 0)

    def damage(self, file, at):
        with open(os.path.join(self.place, file), "r+b") as stream:
            stream.seek(at)
            byte = stream.read(1)
            stream.seek(at)
            stream.write(bytes([byte[0] ^ 1]))

    def test_a_guest_goes_on_where_it_was(self):
        self.good("pause", "vm1")
        before = self.counters()
        self.good("snapshot", "create", "vm1", self.place)
        self.assertEqual(self.state(), "held", "as before")
        self.restore("vm2", "--paused")
        self.assertEqual(self.counters("vm2"), before)
        self.good("resume", "vm2")
        self.wait_until_all_go_on("vm2", before)
        self.no_access_is_wrong("vm2")
        self.assertEqual(self.counters(), before, "the first one is held still")
        self.good("resume", "vm1")
        self.wait_until_all_go_on("vm1", before)
        self.no_access_is_wrong("vm1")

    def test_it_goes_on_through_several_lives(self):
        name = "vm1"
        for life in range(4):
            place = os.path.join(self.runtime, f"life{life}")
            self.good("snapshot", "create", name, place, "--keep-held", *(["--compress"] if life % 2 else []))
            before = self.counters(name)
            self.good("shutdown", name, "--now")
            name = f"life{life}"
            self.restore(name, place=place)
            self.wait_until_all_go_on(name, before)
            self.no_access_is_wrong(name)

    def test_several_go_on_from_one_and_know_that_they_are_others(self):
        self.good("snapshot", "create", "vm1", self.place)
        generations = set()
        for name in ("vm2", "vm3", "vm4"):
            self.restore(name, "--paused")
            generations.add(self.peek(hex_gpa(GENERATION_GPA), 16, name))
        generations.add(self.peek(hex_gpa(GENERATION_GPA), 16))
        self.assertEqual(len(generations), 4)
        for name in ("vm2", "vm3", "vm4"):
            self.good("resume", name)
            self.guest_goes_on(name)

    def test_patches_go_with_the_guest(self):
        free = 0x800000  # memory the guest does not touch
        file = os.path.join(self.runtime, "fix.json")
        with open(file, "w", encoding="utf-8") as stream:
            json.dump({"format": 1, "name": "fix", "version": "7", "target": {"any": True}, "writes": [
                {"at": hex_gpa(free), "kind": "data", "expect": "0000", "bytes": "1122"}]}, stream)
        self.good("patch", "apply", "vm1", file)
        applied = json.loads(self.good("patch", "show", "vm1", "fix", "--json"))
        self.good("snapshot", "create", "vm1", self.place)
        self.assertIn("patches:  fix 7\n", self.good("snapshot", "info", self.place))
        self.restore("vm2")
        self.good("patch", "verify", "vm2")
        shown = json.loads(self.good("patch", "show", "vm2", "fix", "--json"))
        self.assertEqual({**shown, "vm": ""}, {**applied, "vm": ""})
        self.assertEqual(len(json.loads(self.good("patch", "list", "vm2", "--json"))["history"]), 1)
        self.good("patch", "revert", "vm2", "fix")
        self.assertEqual(self.peek(hex_gpa(free), 2, "vm2"), b"\0\0")
        self.assertEqual(self.peek(hex_gpa(free), 2), b"\x11\x22")

    def test_afterwards_it_runs_or_is_held_as_one_asks(self):
        self.good("snapshot", "create", "vm1", self.place)
        self.assertEqual(self.state(), "running")
        self.good("snapshot", "create", "vm1", self.place + "2", "--keep-held")
        self.assertEqual(self.state(), "held")
        self.good("snapshot", "create", "vm1", self.place + "3")
        self.assertEqual(self.state(), "held")
        self.good("snapshot", "create", "vm1", self.place + "4", "--resume")
        self.assertEqual(self.state(), "running")
        self.guest_goes_on()

    @unittest.skipUnless(vm_case.may_watch_memory(), "userfaultfd cannot be used")
    def test_a_live_one_is_of_a_guest_that_goes_on_and_can_stand_on_another(self):
        made = json.loads(self.good("snapshot", "create", "vm1", self.place, "--live", "--json"))
        self.assertEqual((made["live"], made["held"]), (True, False))
        self.assertIn("throttled", made)
        self.guest_goes_on()
        self.good("snapshot", "verify", self.place)
        self.restore("vm2")
        self.guest_goes_on("vm2")
        self.good("snapshot", "create", "vm1", self.place + "2", "--live", "--parent", self.place)
        self.restore("vm3", place=self.place + "2")
        self.guest_goes_on("vm3")

    @unittest.skipUnless(vm_case.may_watch_memory(), "userfaultfd cannot be used")
    def test_a_live_one_of_a_paused_vm_lets_it_go_where_that_is_asked_for(self):
        self.good("pause", "vm1")
        self.good("snapshot", "create", "vm1", self.place, "--live")
        self.assertEqual(self.state(), "held")
        self.good("snapshot", "create", "vm1", self.place + "2", "--live", "--resume")
        self.guest_goes_on()

    def test_what_is_there_already_is_left_as_it_is(self):
        os.mkdir(self.place)
        line = self.refused(3, "snapshot", "create", "vm1", self.place)
        self.assertEqual(line, f"stopvisor: snapshot create: vm1: {self.place}: exists already; it was left as it is")
        self.assertEqual(os.listdir(self.place), [])
        self.guest_goes_on()

    def test_a_directory_that_cannot_be_made_is_named_and_the_guest_goes_on(self):
        line = self.refused(1, "snapshot", "create", "vm1", self.runtime + "/none/there")
        self.assertIn(f"vm1: {self.runtime}/none/there: No such file or directory", line)
        self.guest_goes_on()

    def test_a_full_disk_leaves_nothing_behind(self):
        small = subprocess.run(
            [vm_case.STOPVISOR, "run", "--name", "small", "--memory", "48M", "--detach", "--json"], env=self.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
        self.pids.append(json.loads(small.stdout)["pid"])
        before = sorted(os.listdir(self.runtime))
        line = self.refused(1, "snapshot", "create", "small", self.place)
        self.assertIn("File too large", line)
        self.assertEqual(sorted(os.listdir(self.runtime)), before)
        self.guest_goes_on("small")

    def test_a_key_keeps_strangers_out(self):
        keys = []
        for name in ("key", "other"):
            keys.append(os.path.join(self.runtime, name))
            with open(keys[-1], "wb") as file:
                file.write(os.urandom(32))
        self.good("snapshot", "create", "vm1", self.place, "--key", keys[0])
        self.assertEqual(self.good("snapshot", "verify", self.place, "--key", keys[0]),
                         f"{self.place}: good, and sealed with this key\n")
        for words in (["snapshot", "verify", self.place], ["run", "--restore", self.place, "--name", "vm2", "--detach"]):
            self.assertIn("is sealed with a key, and none is given", self.refused(3, *words))
            self.assertIn("seal", self.refused(3, *words, "--key", keys[1]))
        self.restore("vm2", "--key", keys[0])
        self.guest_goes_on("vm2")

    def test_what_was_changed_is_refused_by_name_before_a_guest_runs(self):
        self.good("snapshot", "create", "vm1", self.place)
        for file, at in (("memory.raw", RESULTS_GPA), ("state.bin", 200), ("machine.dtb", 100), ("manifest.json", 50)):
            self.damage(file, at)
            self.assertIn(file, self.refused(3, "snapshot", "verify", self.place))
            self.assertIn(file, self.refused(3, "run", "--restore", self.place, "--name", "vm2", "--detach"))
            self.damage(file, at)
        self.good("snapshot", "verify", self.place)
        self.assertFalse([name for name in self.left_behind() if name.startswith("vm2")])

    def test_one_that_was_put_in_anothers_place_is_refused_where_its_id_is_expected(self):
        key = os.path.join(self.runtime, "key")
        with open(key, "wb") as file:
            file.write(os.urandom(32))
        ids = {}
        for name in ("monday", "tuesday"):
            place = os.path.join(self.runtime, name)
            made = json.loads(self.good("snapshot", "create", "vm1", place, "--key", key, "--json"))
            ids[name] = json.loads(self.good("snapshot", "info", place, "--json"))["id"]
            self.assertEqual(made["id"], ids[name])
            self.assertIn(f"id:       {ids[name]}\n", self.good("snapshot", "info", place))
        monday, tuesday, aside = (os.path.join(self.runtime, name) for name in ("monday", "tuesday", "aside"))
        for old, new in ((monday, aside), (tuesday, monday), (aside, tuesday)):
            os.rename(old, new)
        verify = ("snapshot", "verify", tuesday, "--key", key)
        restore = ("run", "--restore", tuesday, "--key", key, "--name", "vm2", "--detach")
        self.good(*verify)  # the key does not say which
        for words in (verify, restore):
            self.assertIn(f"{tuesday}/manifest.json: is of snapshot {ids['monday']}, and {ids['tuesday']} is expected",
                          self.refused(3, *words, "--expect-id", ids["tuesday"]))
            self.assertIn("--expect-id: xy: is no id", self.refused(2, *words, "--expect-id", "xy"))
            self.good(*words, "--expect-id", ids["monday"])
        self.pids.append(self.status("vm2")["pid"])
        self.good("snapshot", "create", "vm1", aside, "--parent", tuesday, "--key", key)
        newest = json.loads(self.good("snapshot", "info", aside, "--json"))["id"]
        self.good("snapshot", "verify", aside, "--key", key, "--expect-id", newest)
        self.assertIn("is expected", self.refused(3, "snapshot", "verify", aside, "--key", key, "--expect-id", ids["monday"]))
        self.assertIn("goes with --restore", self.refused(2, "run", "--expect-id", ids["monday"]))
        self.assertIn("is for 'snapshot verify'", self.refused(2, "snapshot", "info", tuesday, "--expect-id", ids["monday"]))

    def test_info_tells_what_it_is_of(self):
        self.good("snapshot", "create", "vm1", self.place, "--compress")
        shown = self.good("snapshot", "info", self.place)
        self.assertIn("of:       vm1\n", shown)
        self.assertIn("kind:     full, compressed\n", shown)
        document = json.loads(self.good("snapshot", "info", self.place, "--json"))
        self.assertEqual((document["vm"], document["kind"], document["chain"]), ("vm1", "full", [self.place]))

    def test_a_merged_one_has_the_same_memory(self):
        self.good("snapshot", "create", "vm1", self.place, "--keep-held")
        before = self.counters()
        self.good("snapshot", "chain", "merge", self.place, self.place + "2", "--compress")
        self.restore("vm2", "--paused", place=self.place + "2")
        self.assertEqual(self.counters("vm2"), before)

    def test_one_that_is_cancelled_is_not_there_and_the_guest_runs(self):
        connection = self.connect()
        status, started = connection.ask("POST", "/v1/snapshot", {"directory": self.place})
        self.assertEqual(status, 200)
        job = f"/v1/jobs/{started['job']}"
        self.assertEqual(connection.ask("POST", job + "/cancel")[0], 200)
        self.eventually(lambda: connection.ask("GET", job)[1]["state"] != "running", "the job is over")
        document = connection.ask("GET", job)[1]
        self.assertIn(document["state"], ("cancelled", "done"))  # it may have been quicker
        if document["state"] == "cancelled":
            self.assertEqual([name for name in os.listdir(self.runtime) if "snapshot" in name], [])
        else:
            self.good("snapshot", "verify", self.place)
        self.assertEqual(self.state(), "running")
        self.guest_goes_on()

    def test_a_command_that_is_interrupted_calls_it_off_or_finishes(self):
        child = subprocess.Popen([vm_case.STOPVISOR, "snapshot", "create", "vm1", self.place], env=self.env,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.eventually(lambda: child.poll() is not None or blocks(child.pid, signal.SIGINT), "it takes its signals itself")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=vm_case.LIMIT_S)
        jobs = [job["state"] for job in self.connect().ask("GET", "/v1/jobs")[1]["jobs"]]
        if child.returncode == 0:  # it was quicker
            self.assertEqual(jobs, ["done"])
            self.good("snapshot", "verify", self.place)
        else:
            self.assertEqual((child.returncode, jobs), (1, ["cancelled"]), said)
            self.assertEqual([name for name in os.listdir(self.runtime) if "snapshot" in name], [])
        self.assertEqual(self.state(), "running")
        self.guest_goes_on()

    def test_a_vm_that_ends_meanwhile_leaves_no_half_snapshot(self):
        connection = self.connect()
        self.assertEqual(connection.ask("POST", "/v1/snapshot", {"directory": self.place})[0], 200)
        self.good("shutdown", "vm1", "--now")
        self.eventually(lambda: not vm_case.alive(self.pids[0]), "the VM has ended")
        if os.path.exists(self.place):
            self.good("snapshot", "verify", self.place)
        else:
            self.assertEqual([name for name in os.listdir(self.runtime) if "snapshot" in name], [])

    def test_bad_requests_are_refused_and_there_is_no_job(self):
        connection = self.connect()
        for body in ({}, {"directory": "here"}, {"directory": "/x", "key": "00"}, {"directory": "/x", "afterwards": "what"},
                     {"directory": "/x", "live": 1}, {"directory": "/x", "live": True, "afterwards": "keep-held"},
                     {"directory": "/x\0y"}):
            status, answer = connection.ask("POST", "/v1/snapshot", body)
            self.assertEqual((status, answer["error"]["operation"]), (400, "snapshot create"), body)
        self.assertEqual(connection.ask("GET", "/v1/jobs"), (200, {"jobs": []}))
        for job in ("1", "x", "18446744073709551616"):
            self.assertEqual(connection.ask("GET", f"/v1/jobs/{job}")[0], 404)

    def test_words_and_options_that_do_not_go_together_are_named(self):
        for words, said in (
                (["snapshot", "create", "vm1"], "takes VM DIR"),
                (["snapshot", "make", "vm1", "x"], "no such action"),
                (["snapshot", "chain", "merg", "a", "b"], "did you mean"),
                (["snapshot", "info", "x", "--resume"], "are for 'snapshot create'"),
                (["snapshot", "create", "vm1", "x", "--resume", "--keep-held"], "exclude each other"),
                (["snapshot", "create", "vm1", "x", "--live", "--keep-held"], "exclude each other"),
                (["snapshot", "info", "x", "--live"], "are for 'snapshot create'"),
                (["snapshot", "verify", "x", "--compress"], "--compress"),
                (["run", "--restore", "x", "--cpus", "2"], "describes the whole machine"),
                (["run", "--restore", "x", "--machine", "y"], "describes the whole machine"),
                (["run", "--key", "x"], "goes with --restore")):
            self.assertIn(said, self.refused(2, *words))


if __name__ == "__main__":
    vm_case.main()
