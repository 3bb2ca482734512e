# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are cancelled, killed, and made all at once while others stop the guest: it never stays held, never
dies and loses nothing, and what is on disk is whole or not there."""

import json
import os
import random
import shutil
import struct
import threading
import time
import unittest

import vm_case
from vm_case import VmCase, hex_gpa

LONG = os.environ.get("STOPVISOR_TEST_MODE") == "long"
SANITIZED = "ASAN_OPTIONS" in os.environ  # set by tests/run.py
CANCELS = 200 if LONG else 6 if SANITIZED else 16
KILLS = 40 if LONG else 1 if SANITIZED else 3
ROUNDS = 40 if LONG else 2 if SANITIZED else 4  # of three snapshots at once
CPUS = 2
FREE = 0x1000000  # 16 MiB: memory that the guest does not touch
APART = 0x1400000  # between two words that are always written together
PATIENT = {"timeout_ms": 50_000}  # a snapshot's writing is waited for


class Faults(VmCase):
    def setUp(self):
        super().setUp()
        self.snapshots = os.path.join(self.runtime, "snapshots")
        os.mkdir(self.snapshots)
        seed = random.randrange(1 << 32)
        print(f"seed {seed}", flush=True)
        self.choose = random.Random(seed)

    def place(self, name):
        return os.path.join(self.snapshots, str(name))

    def start_busy(self, name="vm1"):
        """A guest that does I/O of which each access counts, with 32 MiB that are not zero."""
        self.start("--cpus", CPUS, "--memory", "64M", "--cmdline", "scenarios=io,ledger", name=name)
        self.wait_until_guest_runs(CPUS, name)
        connection = self.connect(name)
        for number in range(32):
            body = {"writes": [{"address": hex_gpa(FREE + (number << 20)), "bytes": self.choose.randbytes(1 << 19).hex()}]}
            self.assertEqual(connection.ask("POST", "/v1/poke", body)[0], 200)
        return connection

    def begin(self, connection, place, **options):
        status, answer = connection.ask("POST", "/v1/snapshot", {"directory": place, **PATIENT, **options})
        self.assertEqual(status, 200, answer)
        return f"/v1/jobs/{answer['job']}"

    def end_of(self, connection, job):
        while True:
            status, document = connection.ask("GET", job + "?wait_ms=10000")
            self.assertEqual(status, 200, document)
            if document["state"] != "running":
                return document

    def good_on_disk(self, name):
        self.good("snapshot", "verify", self.place(name))

    def nothing_is_lost(self, name="vm1"):
        """Nobody holds the guest, it runs, and its own counts are the device's."""
        status = self.status(name)
        self.assertEqual((status["state"], status["holds"]), ("running", 0))
        for cpu in range(CPUS):
            self.guest_goes_on(name, cpu)
        self.good("pause", name)
        sent = [0, 0, 0, 0]
        for cpu in range(CPUS):
            words = struct.unpack("<5Q", self.peek(hex_gpa(vm_case.cpu_results_gpa(cpu) + vm_case.IO_OFFSET), 40, name))
            self.assertEqual(words[4], 0, f"vCPU {cpu}: bad answers")
            sent = [total + word for total, word in zip(sent, words)]
        bell = self.status(name)["doorbell"]
        self.assertEqual((bell["lost"], bell["doubled"]), (0, 0))
        for ours, kind in zip(sent, ("port_writes", "port_reads", "mmio_writes", "mmio_reads")):
            self.assertTrue(0 <= bell[kind] - ours <= CPUS, f"guest {sent}, device {bell}")
        self.good("resume", name)

    def test_cancelled_at_any_moment_it_is_not_there_and_the_guest_goes_on(self):
        connection = self.start_busy()
        self.assertEqual(self.end_of(connection, self.begin(connection, self.place("base")))["state"], "done")
        begin = time.monotonic()
        self.end_of(connection, self.begin(connection, self.place("length")))
        length = time.monotonic() - begin
        kinds = [{}, {"compress": True}, {"parent": self.place("base")}, {"afterwards": "resume"}]
        ends = {"cancelled": 0, "done": 0}
        for number in range(CANCELS):
            job = self.begin(connection, self.place(number), **kinds[number % len(kinds)])
            time.sleep(self.choose.uniform(0, length))  # the moment is the subject, not a synchronisation
            self.assertEqual(connection.ask("POST", job + "/cancel")[0], 200)
            document = self.end_of(connection, job)
            self.assertIn(document["state"], ends, document)
            ends[document["state"]] += 1
            if document["state"] == "done":
                self.good_on_disk(number)
                shutil.rmtree(self.place(number))
            self.assertEqual(sorted(os.listdir(self.snapshots)), ["base", "length"])
            self.assertEqual(self.status()["holds"], 0)
        print(ends, flush=True)
        self.nothing_is_lost()

    def test_a_vm_that_is_killed_at_any_moment_leaves_no_half(self):
        for number in range(KILLS):
            name = f"vm{number}"
            connection = self.start_busy(name)
            self.begin(connection, self.place(number), compress=number % 2 == 1)
            time.sleep(self.choose.uniform(0, 0.2))  # the moment is the subject
            os.kill(self.pids[-1], vm_case.signal.SIGKILL)
            self.eventually(lambda: not vm_case.alive(self.pids[-1]), "its end")
            if os.path.exists(self.place(number)):
                self.good_on_disk(number)
        self.start("--memory", "48M", name="other")
        self.good("snapshot", "create", "other", self.place("last"))
        for name in os.listdir(self.snapshots):
            self.assertFalse(name.startswith("."), name)

    def test_many_at_once_in_a_storm_of_stops_are_each_of_one_moment(self):
        self.start_busy()
        failures, over = [], threading.Event()

        def thread(work, *arguments):
            def run():
                try:
                    work(self.connect(), *arguments)
                except Exception as error:  # the thread's end: reported below
                    failures.append(error)
                    over.set()
            return threading.Thread(target=run)

        def poke(connection, at):
            """Two words far apart, in one stop. Nobody else writes there: what we wrote last must be there."""
            number = 0
            while not over.is_set():
                old, new = (struct.pack("<Q", value).hex() for value in (number, number + 1))
                writes = [{"address": hex_gpa(gpa), "expect": old, "bytes": new} for gpa in (at, at + APART)]
                status, answer = connection.ask("POST", "/v1/poke", {"writes": writes, **PATIENT})
                self.assertEqual(status, 200, answer)
                number += 1

        def pause(connection):
            while not over.is_set():
                self.assertEqual(connection.ask("POST", "/v1/pause", PATIENT)[0], 200)
                self.assertEqual(connection.ask("POST", "/v1/resume", {})[0], 200)

        def lease(connection):
            while not over.is_set():
                status, answer = connection.ask("POST", "/v1/lease", PATIENT)
                self.assertEqual(status, 200, answer)
                self.assertEqual(connection.ask("DELETE", f"/v1/lease/{answer['id']}")[0], 200)

        def cancel(connection):
            job = self.begin(connection, self.place("cancelled"))
            self.assertEqual(connection.ask("POST", job + "/cancel")[0], 200)
            self.assertIn(self.end_of(connection, job)["state"], ("cancelled", "done"))
            shutil.rmtree(self.place("cancelled"), ignore_errors=True)

        words = [FREE + (1 << 20) - 8 * (1 + number) for number in range(2)]  # behind what is not zero, and on one page
        self.poke_zeros(words)
        storm = [thread(poke, at) for at in words] + [thread(pause), thread(lease)]
        for one in storm:
            one.start()
        try:
            for number in range(ROUNDS):
                results = []

                def snapshot(connection, place, results=results):
                    results.append(self.end_of(connection, self.begin(connection, place)))

                same = [self.place(f"{number}-same")] * 2
                places = same + [self.place(f"{number}-own")]
                makers = [thread(snapshot, place) for place in places] + [thread(cancel)]
                for one in makers:
                    one.start()
                for one in makers:
                    one.join()
                if failures:
                    break
                ends = sorted((os.path.basename(job["object"]), job["state"]) for job in results)
                self.assertEqual(ends, [(f"{number}-own", "done"), (f"{number}-same", "done"), (f"{number}-same", "failed")])
                lost = next(job for job in results if job["state"] == "failed")
                self.assertIn("exists already; it was left as it is", lost["error"]["reason"])
                for name in (f"{number}-own", f"{number}-same"):
                    self.good_on_disk(name)
                    self.is_of_one_moment(name, words)
                    shutil.rmtree(self.place(name))
        finally:
            over.set()
            for one in storm:
                one.join()
        self.assertEqual(failures, [])
        self.assertEqual(os.listdir(self.snapshots), [])
        self.nothing_is_lost()

    def poke_zeros(self, words):
        writes = [{"address": hex_gpa(gpa), "bytes": bytes(8).hex()} for at in words for gpa in (at, at + APART)]
        self.assertEqual(self.connect().ask("POST", "/v1/poke", {"writes": writes})[0], 200)

    def is_of_one_moment(self, name, words):
        with open(os.path.join(self.place(name), "memory.raw"), "rb") as memory:
            for at in words:
                pair = []
                for gpa in (at, at + APART):
                    memory.seek(gpa)
                    pair.append(memory.read(8))
                self.assertEqual(pair[0], pair[1], f"{name}: {json.dumps([half.hex() for half in pair])}")


if __name__ == "__main__":
    vm_case.main()
