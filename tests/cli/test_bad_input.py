# SPDX-License-Identifier: Apache-2.0
"""Wrong usage and bad input: one clear line, the right status, and nothing left behind."""

import json
import os
import pwd
import subprocess
import unittest

import raw_guest
import vm_case
from vm_case import STOPVISOR, CommandCase, VmCase


class Usage(CommandCase):
    """What is refused before any VM is touched: needs no KVM."""

    def tearDown(self):
        self.assertEqual(self.left_behind(), [])
        super().tearDown()

    def test_wrong_usage_is_status_2_and_one_line(self):
        for words in ((), ("frobnicate",), ("run", "--nothing"), ("run", "extra"), ("status",), ("peek", "vm1"),
                      ("status", "vm1", "vm2"), ("hold", "vm1"), ("poke", "vm1", "gpa:0x0"),
                      ("run", "--cpus", "0"), ("run", "--cpus", "x"), ("run", "--cpus", "-1"), ("run", "--cpus", ""),
                      ("run", "--memory", "x"), ("run", "--memory", "1Q"), ("run", "--memory", ""),
                      ("run", "--memory", "99999999999999999999G"), ("run", "--memory-backing", "disk"),
                      ("run", "--serial", "printer"), ("run", "--serial", "file:"), ("run", "--kernel", ""),
                      ("run", "--detach", "--serial", "stdio"), ("run", "--json", "--serial", "stdio"),
                      ("run", "--name", ""), ("run", "--name", ".hidden"), ("run", "--name", "-x"),
                      ("run", "--name", "a/b"), ("run", "--name", "a b"), ("run", "--name", "x" * 65),
                      ("peek", "vm1", "0x1000", "4"), ("peek", "vm1", "gpa:1000", "4"), ("peek", "vm1", "gpa:0x", "4"),
                      ("peek", "vm1", "gpa:0x10000000000000000", "4"), ("peek", "vm1", "gpa:0x0", "0"),
                      ("peek", "vm1", "gpa:0x0", "2M"), ("peek", "vm1", "gpa:0x0", "x"),
                      ("peek", "vm1", "gpa:0x0", "4", "--raw", "--json"),
                      ("poke", "vm1", "gpa:0x0", "0"), ("poke", "vm1", "gpa:0x0", "xx"), ("poke", "vm1", "gpa:0x0", ""),
                      ("poke", "vm1", "gpa:0x0", "00", "--expect", "00", "--expect", "00"),
                      ("regs", "vm1", "--cpu", "x"), ("regs", "vm1", "--cpu", "-1"),
                      ("hold", "vm1", "--max", "5", "--", "true"), ("hold", "vm1", "--max", "0ms", "--", "true"),
                      ("pause", "vm1", "--timeout", "x"), ("peek", "vm1", "gpa:0x0", "4", "--timeout", "x"),
                      ("poke", "vm1", "gpa:0x0", "00", "--timeout", "2h"), ("regs", "vm1", "--timeout", "0s"),
                      ("guest", "vm1", "--timeout", "1"), ("status", "vm1", "--timeout", "x"),
                      ("status", "vm1", "--no-stop", "--timeout", "1s"), ("status", "vm1", "--dtb", "--symbols", "f"),
                      ("console", "vm1", "--log", "--no-input"), ("status", "a/b"), ("status", "..")):
            with self.subTest(words=words):
                self.refused(2, *words)

    def test_a_timeout_of_the_environment_is_checked_like_one_that_is_given(self):
        self.env["STOPVISOR_TIMEOUT"] = "5"
        for verb in ("status", "pause", "regs", "guest", "shutdown"):
            self.assertIn(f"{verb}: STOPVISOR_TIMEOUT: 5: duration lacks a unit", self.refused(2, verb, "vm1"))
        self.assertIn("no such VM", self.refused(1, "regs", "vm1", "--timeout", "5s"))
        self.env["STOPVISOR_TIMEOUT"] = ""
        self.assertIn("no such VM", self.refused(1, "regs", "vm1"))

    def test_a_ram_disk_without_a_kernel_is_refused(self):
        self.assertIn("run: --initrd: some.img: goes with --kernel", self.refused(2, "run", "--initrd", "some.img"))

    def test_an_unknown_verb_suggests_the_nearest(self):
        self.assertIn("did you mean 'pause'?", self.refused(2, "puase"))
        self.assertIn("did you mean 'shutdown'?", self.refused(2, "shut"))
        self.assertIn("--help", self.refused(2, "qqqqqqqqq"))

    def test_an_error_before_any_verb_has_no_empty_part_in_its_message(self):
        done = self.stopvisor("--json")
        self.assertEqual(json.loads(done.stdout)["error"]["message"], "no verb given; see 'stopvisor --help'")

    def test_an_unknown_option_is_named_and_suggests_the_nearest(self):
        self.assertIn("run: --cpu: no such option; did you mean '--cpus'?", self.refused(2, "run", "--cpu", "4"))
        self.assertIn("run: --qqqqqqq: no such option; see 'stopvisor run --help'", self.refused(2, "run", "--qqqqqqq"))
        self.assertIn("ls: vm1: an argument too many", self.refused(2, "ls", "vm1", "vm2"))
        self.assertIn("-l: no such option; one of CMD's goes after --", self.refused(2, "hold", "vm1", "ls", "-l"))

    def test_help_of_a_verb_can_be_asked_for_in_both_ways(self):
        self.assertEqual(self.good("help", "run"), self.good("run", "--help"))
        self.assertEqual(self.good("help"), self.good("--help"))
        self.assertIn("did you mean 'pause'?", self.refused(2, "help", "puase"))

    def test_help_is_there_for_every_verb(self):
        general = self.good("--help")
        for verb in ("run", "ls", "status", "pause", "resume", "hold", "peek", "poke", "regs", "cpu", "shutdown"):
            self.assertIn(f"\n  {verb} ", general)
            text = self.good(verb, "--help")
            self.assertIn(f"stopvisor {verb}", text)
            self.assertIn("xample", text)

    def test_with_json_an_error_is_one_document_too(self):
        for words in (("status", "vm1", "--json"), ("--json", "status", "vm1")):
            done = self.stopvisor(*words)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(json.loads(done.stdout)["error"]["object"], "vm1")
        self.assertEqual(json.loads(self.stopvisor("peek", "--json").stdout)["error"]["status"], 2)

    def test_ls_without_vms_is_an_empty_list(self):
        self.assertEqual(json.loads(self.good("ls", "--json")), {"vms": []})

    def test_output_that_cannot_be_written_is_an_error(self):
        with open("/dev/full", "w", encoding="ascii") as full:
            done = subprocess.run([STOPVISOR, "--help"], stdout=full, stderr=subprocess.PIPE, text=True,
                                  timeout=vm_case.LIMIT_S, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("No space left", done.stderr)


class Directory(CommandCase):
    """A socket directory that cannot be trusted is not used."""

    def test_others_may_not_get_at_it(self):
        os.mkdir(self.directory, 0o755)
        for words in (("run", "--serial", "none"), ("ls",), ("status", "vm1")):
            self.assertIn("0700", self.refused(1, *words))

    def test_it_may_not_be_a_symbolic_link(self):
        real = os.path.join(self.runtime, "real")
        os.mkdir(real, 0o700)
        os.symlink(real, self.directory)
        for words in (("run", "--serial", "none"), ("ls",)):
            self.assertIn("symbolic link", self.refused(1, *words))
        self.assertEqual(os.listdir(real), [])

    def test_it_may_not_be_a_file(self):
        open(self.directory, "w", encoding="ascii").close()
        self.refused(1, "run", "--serial", "none")

    @unittest.skipUnless(os.geteuid() == 0, "only root can give a directory away")
    def test_it_must_be_our_own(self):
        os.mkdir(self.directory, 0o700)
        os.chown(self.directory, 12345, 12345)
        self.assertIn("uid 12345", self.refused(1, "run", "--serial", "none"))

    def test_a_path_too_long_for_a_socket_is_named(self):
        self.env["XDG_RUNTIME_DIR"] = long = os.path.join(self.runtime, "x" * 100)
        os.mkdir(long)
        self.assertIn("too long for a socket", self.refused(2, "run", "--serial", "none"))

    def test_a_runtime_directory_that_is_missing_is_named(self):
        self.env["XDG_RUNTIME_DIR"] = missing = os.path.join(self.runtime, "missing")
        self.assertIn(missing, self.refused(1, "run", "--serial", "none"))
        self.good("ls")

    @unittest.skipUnless(os.geteuid() == 0, "only root can become somebody without rights")
    def test_whoever_may_not_use_the_default_directory_is_told_of_the_other(self):
        nobody = pwd.getpwnam("nobody")
        if subprocess.run(["test", "-x", STOPVISOR], user=nobody.pw_uid, check=False).returncode != 0:
            self.skipTest("the build folder is closed to others")
        del self.env["XDG_RUNTIME_DIR"]
        done = self.stopvisor("run", "--serial", "none", user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[])
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("XDG_RUNTIME_DIR is not set", done.stderr)


class Configuration(VmCase):
    """What the VMM itself refuses, in the foreground and detached."""

    def tearDown(self):
        self.assertEqual(self.left_behind(), [])
        super().tearDown()

    def never_runs(self, statuses, *options):
        for how in (("--serial", "none"), ("--detach",)):
            done = self.stopvisor("run", *how, *options)
            self.assertIn(done.returncode, statuses, (options, done.stderr))
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertTrue(done.stderr.startswith("stopvisor: run: "), done.stderr)
        return done.stderr

    def file(self, content):
        path = os.path.join(self.runtime, "file")
        with open(path, "wb") as file:
            file.write(content)
        return path

    def test_kernels_that_are_none(self):
        self.never_runs((1,), "--kernel", "/no/such/file")
        self.never_runs((1,), "--kernel", self.runtime)
        self.never_runs((1,), "--kernel", self.file(b""))
        self.never_runs((1,), "--kernel", self.file(b"#!/bin/sh\n"))
        self.never_runs((1,), "--kernel", self.file(b"\x7fELF" + bytes(60)))
        self.never_runs((1,), "--kernel", STOPVISOR)  # an ELF, but no PVH one

    def test_an_initrd_that_is_not_there(self):
        kernel = raw_guest.kernel(raw_guest.echo())
        self.addCleanup(os.unlink, kernel)
        self.never_runs((1,), "--kernel", kernel, "--initrd", "/no/such/file")

    def test_memory_of_no_or_odd_size(self):
        for size in ("0", "1", "4097", "1K"):
            self.never_runs((1, 2), "--memory", size)

    def test_more_of_everything_than_there_is(self):
        self.never_runs((1, 2), "--cpus", "100000")
        for size, asked in (("50T", "51200 GiB"), ("1000000G", "1000000 GiB")):
            done = self.stopvisor("run", "--memory", size, "--serial", "none")
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stderr, f"^stopvisor: run: start VM: vm1: {asked} of memory are more than this host's "
                                          r"KVM gives one machine \(at most \d+ GiB\)\n$")

    def test_a_kernel_that_does_not_fit_into_memory(self):
        self.never_runs((1, 2), "--memory", "64K")

    def test_a_serial_file_that_cannot_be_made(self):
        done = self.stopvisor("run", "--serial", "file:/no/such/directory/file")
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 1), done.stderr)

    @unittest.skipUnless(os.geteuid() == 0, "only root can become somebody without rights")
    def test_no_rights_to_kvm(self):
        nobody = pwd.getpwnam("nobody")
        os.chown(self.runtime, nobody.pw_uid, nobody.pw_gid)

        if subprocess.run(["test", "-x", STOPVISOR], user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[],
                          check=False).returncode != 0:
            self.skipTest("the build folder is closed to others")
        if subprocess.run(["test", "-r", "/dev/kvm", "-a", "-w", "/dev/kvm"], user=nobody.pw_uid, group=nobody.pw_gid,
                          extra_groups=[], check=False).returncode == 0:
            self.skipTest("/dev/kvm is open to everybody here")  # the VM would run
        done = self.stopvisor("run", "--serial", "none", user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[])
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("/dev/kvm", done.stderr)
        os.chown(self.runtime, 0, 0)
        os.chown(self.directory, 0, 0)


if __name__ == "__main__":
    vm_case.main()
