# SPDX-License-Identifier: Apache-2.0
"""patch: change a running guest, all or nothing, and take it back."""

import json
import os
import signal
import socket
import struct
import subprocess
import threading
import unittest

import raw_guest
import vm_case
from vm_case import VmCase

FREE_GPA = 0x800000  # memory the probe guest does not touch
CODE_SITE_GPA = 0x600000 + 0x1000 - 6  # guest/probe_abi.h: code_site_gpa(0): movabs $0, %rax; ret
SPIN = b"\x90\xeb\xfe"  # nop; jmp . : the vCPU stands at the second instruction


def data(at, expect, to):
    return {"at": at, "kind": "data", "expect": expect, "bytes": to}


def code(at, expect, to):
    return {"at": at, "kind": "code", "expect": expect, "bytes": to}


def manifest(name, *writes, **more):
    return {"format": 1, "name": name, "version": "1", "target": {"any": True}, "writes": list(writes), **more}


class PatchCase(VmCase):
    def file(self, document):
        """A patch file with that document, or that text."""
        path = os.path.join(self.runtime, f"patch{len(os.listdir(self.runtime))}.json")
        with open(path, "w", encoding="utf-8") as file:
            file.write(document if isinstance(document, str) else json.dumps(document))
        return path

    def patches(self):
        return {patch["patch"]: patch for patch in json.loads(self.good("patch", "list", "vm1", "--json"))["patches"]}

    def history(self):
        return [event["what"] for event in json.loads(self.good("patch", "list", "vm1", "--json"))["history"]]


class Patch(PatchCase):
    def setUp(self):
        super().setUp()
        self.start("--cpus", 2)
        self.wait_until_guest_runs(2)
        self.one = self.file(manifest("one", data(f"gpa:{FREE_GPA:#x}", "0000", "1122"),
                                      code(f"gva:{CODE_SITE_GPA:#x}", "48b80000000000000000", "48b80101010101010101")))

    def at_free(self, length=2):
        return self.peek(f"gpa:{FREE_GPA:#x}", length).hex()

    def test_apply_list_show_verify_and_revert(self):
        self.assertEqual(self.good("patch", "list", "vm1"), "no patches are applied\n")
        applied = self.good("patch", "apply", "vm1", self.one)
        self.assertRegex(applied, r"^one: applied: 2 sites, 12 bytes; the guest was held for ")
        self.assertEqual(self.at_free(), "1122")
        self.assertRegex(self.good("patch", "list", "vm1").splitlines()[1], r"^one +1 +applied +2 +\d{4}-.* uid \d+$")
        shown = json.loads(self.good("patch", "show", "vm1", "one", "--json"))
        self.assertEqual([site["before"] for site in shown["sites"]], ["0000", "48b80000000000000000"])
        self.assertEqual(shown["by"]["uid"], os.getuid())
        self.assertEqual(shown["manifest"]["writes"][0]["bytes"], "1122")
        self.assertEqual(shown["sites"][1]["window"], {"begin": hex(CODE_SITE_GPA), "end": hex(CODE_SITE_GPA + 10)})
        self.assertIn("site 1 gpa:0x800000, data at 0x800000: 0000 -> 1122", self.good("patch", "show", "vm1", "one"))
        self.assertRegex(self.good("patch", "verify", "vm1"), r"^all patches: as written: 2 sites")
        self.assertRegex(self.good("patch", "revert", "vm1", "one"), r"^one: reverted: 2 sites")
        self.assertEqual(self.at_free(), "0000")
        self.assertEqual(self.history(), ["apply", "revert"])

    def test_check_says_what_it_would_do_and_writes_nothing(self):
        text = self.good("patch", "check", "vm1", self.one)
        self.assertIn("site 1 (gpa:0x800000), data at gpa:0x800000: 0000 -> 1122", text)
        self.assertRegex(text, r"one: nothing speaks against it: 2 sites, 12 bytes; the guest was held for ")
        self.assertEqual((self.at_free(), self.patches()), ("0000", {}))

    def test_a_check_that_refuses_is_status_3_with_all_reasons(self):
        wrong = self.file(manifest("wrong", data(f"gpa:{FREE_GPA:#x}", "01", "02"), data("gva:0x7fff00000000", "01", "02"),
                                   data("gpa:0x800010", "00", "02"), require=[
                                       {"at": "gpa:0x800000", "size": 1, "is": "gt", "value": 3}]))
        for action in ("check", "apply"):
            line = self.refused(3, "patch", action, "vm1", wrong)
            self.assertIn("site 1 (gpa:0x800000): expected 01, found 00; ", line)
            self.assertIn("site 2 (gva:0x7fff00000000): gva:0x7fff00000000 is not mapped", line)
            self.assertIn("require 1 (gpa:0x800000): is 0x0, must be gt 0x3; nothing was written", line)
        self.assertEqual(self.peek("gpa:0x800010", 1), b"\0")

    def test_drift_is_status_5_and_shown_three_ways(self):
        self.good("patch", "apply", "vm1", self.one)
        self.good("poke", "vm1", f"gpa:{FREE_GPA + 1:#x}", "33")
        for words in (("revert", "vm1", "one"), ("verify", "vm1"), ("verify", "vm1", "one")):
            line = self.refused(5, "patch", *words)
            self.assertIn("site 1 (gpa:0x800000): originally 00 00, written 11 22, found 11 33", line)
        self.assertEqual(self.at_free(), "1133")
        forced = self.good("patch", "revert", "vm1", "one", "--force", "drift")
        self.assertIn("overruled: drift: site 1", forced)
        self.assertEqual(self.at_free(), "0000")

    def test_forced_checks_are_recorded(self):
        wrong = self.file(manifest("wrong", data(f"gpa:{FREE_GPA:#x}", "01", "02")))
        self.assertIn("overruled: expect: ", self.good("patch", "apply", "vm1", wrong, "--force=expect"))
        self.assertEqual(self.patches()["wrong"]["forced"], ["expect"])
        line = self.refused(2, "patch", "check", "vm1", wrong, "--force=translation")
        self.assertIn("of the checks these may be forced: target, rights, expect", line)

    def test_replace_takes_the_place_of_the_old(self):
        self.good("patch", "apply", "vm1", self.one)
        two = self.file(manifest("two", data(f"gpa:{FREE_GPA + 1:#x}", "0000", "4455"), replaces=["one"]))
        self.assertIn("'patch replace' does that", self.refused(3, "patch", "apply", "vm1", two))
        self.assertIn("in the place of one", self.good("patch", "replace", "vm1", two))
        self.assertEqual(self.at_free(3), "004455")
        self.assertEqual(list(self.patches()), ["two"])
        self.assertEqual(self.guest_word(CODE_SITE_GPA + 2), 0)
        self.refused(2, "patch", "replace", "vm1", two, "--confirm-within", "1s")

    def test_replace_that_is_refused_leaves_the_old(self):
        self.good("patch", "apply", "vm1", self.one)
        two = self.file(manifest("two", data(f"gpa:{FREE_GPA:#x}", "9900", "4455"), replaces=["one"]))
        self.refused(3, "patch", "replace", "vm1", two)
        self.good("patch", "verify", "vm1", "one")

    def test_what_nobody_confirms_is_reverted_by_itself(self):
        self.good("patch", "apply", "vm1", self.one, "--confirm-within", "200ms")
        self.eventually(lambda: self.at_free() == "0000", "it is reverted")
        self.eventually(lambda: self.history() == ["apply", "revert: not confirmed in time"], "the ledger says so")
        self.assertEqual(self.patches(), {})

    def test_what_is_confirmed_stays(self):
        self.good("patch", "apply", "vm1", self.one, "--confirm-within", "600s")
        self.assertEqual(self.patches()["one"]["state"], "unconfirmed")  # here, as nothing ends it before we look
        self.assertGreater(self.patches()["one"]["reverts_in_ms"], 0)
        self.assertEqual(self.good("patch", "confirm", "vm1", "one"), "one: confirmed\n")
        self.assertEqual(self.patches()["one"]["state"], "applied")
        self.refused(3, "patch", "confirm", "vm1", "two")

    def test_typed_operations_change_words(self):
        self.good("poke", "vm1", f"gpa:{FREE_GPA:#x}", "ff000000")
        self.good("patch", "apply", "vm1", self.file(manifest(
            "add", {"at": f"gpa:{FREE_GPA:#x}", "kind": "data", "expect": "ff000000",
                    "operation": {"op": "add", "size": 4, "value": 2}},
            {"at": f"gpa:{FREE_GPA + 8:#x}", "kind": "data", "operation": {"op": "cas", "size": 2, "from": 0, "to": 7}})))
        self.assertEqual(self.at_free(10), "01010000000000000700")

    def test_wrong_files_and_words_are_status_2(self):
        unknown = self.file(manifest("x", data("gpa:0x1000", "00", "01"), extra=1))
        self.assertIn(f'{unknown}: manifest "extra": is no field that is known', self.refused(2, "patch", "check", "vm1", unknown))
        self.assertIn("is not valid JSON", self.refused(2, "patch", "apply", "vm1", self.file("{")))
        no_expect = manifest("x", {"at": "gpa:0x1000", "kind": "data", "bytes": "00"})
        self.assertIn("writes[0].expect: is missing", self.refused(2, "patch", "apply", "vm1", self.file(no_expect)))
        self.assertIn("patch: aply: no such action; did you mean 'apply'?", self.refused(2, "patch", "aply", "vm1", self.one))
        self.assertIn("see 'stopvisor patch --help'", self.refused(2, "patch", "frobnicate", "vm1", self.one))
        self.refused(2, "patch", "apply", "vm1")
        self.refused(2, "patch", "list", "vm1", "--retries", 1)
        self.refused(2, "patch", "apply", "vm1", self.one, "--retries", "many")
        self.refused(2, "patch", "revert", "vm1", "one", "--confirm-within", "1s")
        self.refused(1, "patch", "apply", "vm1", "/nowhere.json")
        self.refused(3, "patch", "show", "vm1", "one")
        self.assertIn("no Linux", self.refused(3, "patch", "check", "vm1", self.file(
            manifest("x", code("sym:schedule", "00", "01")))))

    def test_a_held_guest_can_be_patched(self):
        self.good("pause", "vm1")
        self.assertIn("held by others as well", self.good("patch", "apply", "vm1", self.one))
        self.assertEqual(self.at_free(), "1122")
        self.good("resume", "vm1")
        self.guest_goes_on()

    def test_max_hold_writes_nothing_where_it_takes_longer(self):
        many = [data(f"gpa:{FREE_GPA + 16 * i:#x}", "00", "01") for i in range(2000)]
        line = self.refused(4, "patch", "apply", "vm1", self.file(manifest("many", *many)), "--max-hold", "1us")
        self.assertIn("--max-hold; nothing was written", line)
        self.assertEqual(self.at_free(), "0000")

    def test_clients_together_leave_one_patch(self):
        results = []
        clients = [threading.Thread(target=lambda: results.append(self.stopvisor("patch", "apply", "vm1", self.one)))
                   for _ in range(6)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        self.assertEqual(sorted(result.returncode for result in results), [0, 3, 3, 3, 3, 3])
        self.good("patch", "verify", "vm1")


class PatchUnderWay(PatchCase):
    """vCPUs inside the window, clients and VMs that die."""

    def setUp(self):
        super().setUp()
        self.pid = self.start_raw(SPIN)
        at_loop = lambda: json.loads(self.good("regs", "vm1", "--json"))["cpus"][0]["rip"] == raw_guest.ENTRY + 1
        self.eventually(at_loop, "the guest is in its loop")
        self.loop = self.file(manifest("loop", code(f"gpa:{raw_guest.ENTRY:#x}", "90ebfe", "90ebfd")))

    def is_under_way(self):
        """While one change is being tried another one waits; else there is no such patch."""
        return self.stopvisor("patch", "revert", "vm1", "nothing", "--timeout", "50ms").returncode == 4

    def test_a_vcpu_inside_the_window_is_status_4(self):
        line = self.refused(4, "patch", "apply", "vm1", self.loop, "--retries", "3")
        self.assertIn("vCPU 0 is at gva:0x100001, inside its window of 3 bytes; nothing was written", line)

    def test_a_client_that_dies_leaves_the_old_or_the_new(self):
        client = subprocess.Popen([vm_case.STOPVISOR, "patch", "apply", "vm1", self.loop, "--retries", "10000",
                                   "--timeout", "5s"], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(client.wait)
        self.eventually(self.is_under_way, "the change is under way")
        client.send_signal(signal.SIGKILL)
        other = self.file(manifest("other", data("gpa:0x200000", "00", "01")))
        self.good("patch", "apply", "vm1", other, "--timeout", "30s")
        self.assertEqual(list(self.patches()), ["other"])
        self.assertEqual(self.peek(f"gpa:{raw_guest.ENTRY:#x}", 3), SPIN)

    def test_a_vm_that_dies_is_told_and_nothing_is_left(self):
        client = subprocess.Popen([vm_case.STOPVISOR, "patch", "apply", "vm1", self.loop, "--retries", "10000",
                                   "--timeout", "60s"], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(client.wait)
        self.addCleanup(client.stderr.close)
        self.eventually(self.is_under_way, "the change is under way")
        os.kill(self.pid, signal.SIGKILL)
        self.assertEqual(client.wait(timeout=vm_case.LIMIT_S), 1)
        self.assertIn("patch apply", client.stderr.read())


class PatchAndDeath(PatchCase):
    """Clients and VMs that are gone when the change was asked for."""

    def setUp(self):
        super().setUp()
        self.pid = self.start("--cpus", 2)
        self.one = manifest("one", data(f"gpa:{FREE_GPA:#x}", "0000", "1122"))

    def test_a_client_that_asks_and_goes_has_its_change_made(self):
        body = json.dumps({"manifest": json.dumps(self.one)}).encode()
        head = f"POST /v1/patch/apply HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.path.join(self.directory, "vm1.sock"))
            client.sendall(head + body)
        self.eventually(lambda: list(self.patches()) == ["one"], "the change is made")
        self.assertEqual(self.peek(f"gpa:{FREE_GPA:#x}", 2), b"\x11\x22")
        self.good("patch", "verify", "vm1")

    def test_a_vm_that_is_killed_takes_its_patches_along(self):
        self.good("patch", "apply", "vm1", self.file(self.one))
        os.kill(self.pid, signal.SIGKILL)
        self.eventually(lambda: not vm_case.alive(self.pid), "the VM is gone")
        self.refused(1, "patch", "list", "vm1")
        self.start("--cpus", 2)
        self.assertEqual((self.patches(), self.history()), ({}, []))
        self.assertEqual(self.peek(f"gpa:{FREE_GPA:#x}", 2), b"\0\0")


class PatchBuild(vm_case.CommandCase):
    """build: two ELF files become a patch file."""

    def elf(self, content):
        """A file of one executable segment at 1 MiB."""
        header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0x100000, 64, 0, 0, 64, 56, 1, 64, 0, 0)
        program = struct.pack("<IIQQQQQQ", 1, 5, 120, 0x100000, 0x100000, len(content), len(content), 0x1000)
        path = os.path.join(self.runtime, f"elf{len(os.listdir(self.runtime))}")
        with open(path, "wb") as file:
            file.write(header + program + content)
        return path

    def test_differences_become_writes(self):
        old, new = self.elf(b"\x90" * 64), self.elf(b"\x90" * 32 + b"\xc3" + b"\x90" * 31)
        built = json.loads(self.good("patch", "build", old, new, "--name", "fix", "--at", "gpa"))
        self.assertEqual(built["name"], "fix")
        self.assertEqual(built["writes"], [{"at": "gpa:0x100020", "kind": "code", "expect": "90", "bytes": "c3"}])
        self.assertIn("has no symbol", self.refused(3, "patch", "build", old, new))
        self.assertIn("does not differ", self.refused(3, "patch", "build", old, old))
        self.refused(2, "patch", "build", old, new, "--at", "moon")
        self.refused(2, "patch", "build", old, new, "--name", "no name")
        self.refused(1, "patch", "build", old, "/nowhere")
        self.assertIn("not an ELF file", self.refused(1, "patch", "build", old, __file__))


if __name__ == "__main__":
    vm_case.main()
