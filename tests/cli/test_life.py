# SPDX-License-Identifier: Apache-2.0
"""run, ls, status, shutdown: a VM's life, and what is left of it after each way it can end."""

import fcntl
import json
import os
import random
import resource
import signal
import struct
import subprocess
import termios
import time
import unittest

import raw_guest
import vm_case
from vm_case import STOPVISOR, VmCase


def unread(client):
    """How many bytes the other end has not taken yet; a hang-up before that is no end of file, but a reset."""
    return struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))[0]


class Life(VmCase):
    def log(self, name="vm1"):
        with open(os.path.join(self.directory, name + ".log"), encoding="utf-8") as file:
            return file.read()

    def test_a_detached_vm_answers_at_once_and_is_listed(self):
        pid = self.start("--cpus", 2, "--memory", "64M")
        listed = json.loads(self.good("ls", "--json"))["vms"]
        self.assertEqual([(vm["name"], vm["pid"], vm["cpus"], vm["memory_bytes"]) for vm in listed],
                         [("vm1", pid, 2, 64 << 20)])
        self.assertIn("vm1", self.good("ls"))

    def test_without_a_name_the_first_free_one_is_generated(self):
        names = []
        for _ in range(2):
            started = json.loads(self.good("run", "--detach", "--json"))
            self.pids.append(started["pid"])
            names.append(started["vm"])
        self.assertEqual(names, ["vm1", "vm2"])

    def test_every_number_of_vcpus_runs_and_shuts_down(self):
        for cpus in (1, 2, 4, 8, 32):
            with self.subTest(cpus=cpus):
                pid = self.start("--cpus", cpus)
                self.wait_until_guest_runs(cpus)
                self.assertEqual(len(self.status()["vcpus"]), cpus)
                self.good("shutdown", "vm1", "--timeout", "60s")
                self.assertFalse(vm_case.alive(pid))
                self.assertEqual(self.left_behind(), [])

    def test_status_names_threads_memory_and_the_machine(self):
        self.start("--cpus", 2, "--memory-backing", "memfd")
        status = self.status()
        self.assertEqual((status["state"], status["memory_backing"], status["holds"]), ("running", "memfd", 0))
        self.assertEqual(status["socket"], self.socket_path())
        for vcpu in status["vcpus"]:
            self.assertTrue(os.path.isdir(f"/proc/{status['pid']}/task/{vcpu['tid']}"))
        self.assertIn("vm1: running", self.good("status", "vm1"))

    def test_the_device_tree_is_printed_and_begins_with_its_magic(self):
        self.start()
        tree = self.stopvisor("status", "vm1", "--dtb", text=False).stdout
        self.assertEqual(tree[:4], b"\xd0\x0d\xfe\xed")
        self.assertEqual(int.from_bytes(tree[4:8], "big"), len(tree))

    def test_shutdown_now_ends_a_vm_that_ignores_its_button(self):
        pid = self.start("--paused")  # a held guest cannot see its button
        line = self.refused(4, "shutdown", "vm1", "--timeout", "100ms")
        self.assertIn("the VM is held", line)
        self.env["STOPVISOR_TIMEOUT"] = "100ms"
        self.assertEqual(self.refused(4, "shutdown", "vm1"), line)
        del self.env["STOPVISOR_TIMEOUT"]
        self.good("shutdown", "vm1", "--now")
        self.assertFalse(vm_case.alive(pid))
        self.assertEqual(self.left_behind(), [])

    def test_ctrl_alt_del_reaches_the_guest_as_keys(self):
        self.start_raw(raw_guest.keyboard_to_serial())
        self.good("shutdown", "vm1", "--ctrl-alt-del")
        keys = b"\x1d\x38\xe0\x53\xe0\xd3\xb8\x9d"  # make and break codes of set 1
        self.eventually(lambda: self.stopvisor("console", "vm1", "--log", text=False).stdout == keys, "the keys")
        self.assertEqual(self.status()["ctrl_alt_dels"], 1)
        with open(os.path.join(self.directory, "vm1.log"), encoding="utf-8") as log:
            self.assertIn("vm1: Ctrl-Alt-Del was pressed", log.read())

    def test_ctrl_alt_del_is_refused_by_a_guest_that_does_not_read_its_keyboard(self):
        self.start()
        self.good("shutdown", "vm1", "--ctrl-alt-del")  # it may begin to
        self.assertIn("does not read its keyboard", self.refused(3, "shutdown", "vm1", "--ctrl-alt-del"))
        for other in ("--now", "--timeout=1s"):
            self.assertIn("exclude each other", self.refused(2, "shutdown", "vm1", "--ctrl-alt-del", other))

    def test_a_reset_is_told_with_who_made_it(self):
        self.start_raw(raw_guest.say(b"up ") + raw_guest.reset_when_told())
        self.assertEqual((self.status()["resets"], self.status()["last_reset_by"]), (0, None))
        connection = self.connect()
        connection.sock.sendall(b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: stopvisor-console\r\n\r\nx")
        self.eventually(lambda: self.status()["resets"] == 1, "the reset")
        self.assertEqual(self.status()["last_reset_by"], "keyboard controller")
        self.eventually(lambda: self.good("console", "vm1", "--log") == "up up ", "its second start")
        # The guest runs again before this is told.
        self.eventually(lambda: "vm1: the guest reset the machine, by its keyboard controller" in self.log(), "the log")

    def test_a_guest_that_switches_itself_off_ends_with_status_0(self):
        child = self.foreground("--serial", "none", "--cmdline", "scenarios=gap exit_after_slices=20000")
        self.assertEqual(child.wait(vm_case.LIMIT_S), 0)
        self.assertEqual(self.left_behind(), [])

    def test_signals_end_a_vm_cleanly_with_128_and_their_number(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            for options in ((), ("--paused",)):
                with self.subTest(signal=number, options=options):
                    child = self.foreground("--serial", "none", "--cpus", 2, *options)
                    child.send_signal(number)
                    self.assertEqual(child.wait(vm_case.LIMIT_S), 128 + number)
                    self.assertEqual(self.left_behind(), [])

    def test_a_signal_at_any_moment_of_the_start_ends_with_128_and_its_number(self):
        seed = random.randrange(1 << 32)
        moments = random.Random(seed)
        for turn in range(30):
            number = (signal.SIGTERM, signal.SIGINT)[turn % 2]
            with self.subTest(seed=seed, turn=turn):
                with subprocess.Popen([STOPVISOR, "run", "--name", "vm1", "--serial", "none", "--cpus", "4"],
                                      env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, text=True) as child:
                    self.pids.append(child.pid)
                    time.sleep(moments.uniform(0, 0.04))  # the moment: nothing here waits for anything
                    child.send_signal(number)
                    _, errors = child.communicate(timeout=vm_case.LIMIT_S)
                    self.pids.remove(child.pid)
                # -number: it came before main(), and a shell says 128 + number too.
                self.assertIn(child.returncode, (128 + number, -number), errors)
                self.assertNotIn("ended already", errors)
                self.assertEqual(self.left_behind(), [])

    def test_a_signal_ends_a_vm_while_a_client_hangs_in_a_request(self):
        child = self.foreground("--serial", "none")
        idle = self.connect()
        half = self.connect()
        half.sock.sendall(b"POST /v1/pause HTTP/1.1\r\nContent-Length: 10\r\n\r\n{")
        self.eventually(lambda: unread(half.sock) == 0, "the VM has read the half")
        self.assertEqual(idle.ask("GET", "/v1/status")[0], 200)
        child.terminate()
        self.assertEqual(child.wait(vm_case.LIMIT_S), 128 + signal.SIGTERM)
        self.assertEqual(half.sock.recv(100), b"")
        self.assertEqual(self.left_behind(), [])

    def test_a_fault_while_booting_ends_with_status_1_and_says_where(self):
        for fault in ("triple", "crash", "ud"):
            with self.subTest(fault=fault):
                done = self.stopvisor("run", "--name", "vm1", "--serial", "none", "--cmdline", f"boot_fault={fault}")
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn("stopvisor: run: vm1: ", done.stderr)
                self.assertIn("vCPU 0", done.stderr)
                self.assertRegex(done.stderr.lower(), "rip")
                self.assertEqual(self.left_behind(), [])

    def test_a_detached_vm_that_crashes_keeps_its_last_words(self):
        pid = self.start("--paused", "--cmdline", "boot_fault=triple")
        self.good("resume", "vm1")
        self.eventually(lambda: not vm_case.alive(pid), "the crash")
        self.assertEqual(self.left_behind(), ["vm1.log"])
        with open(os.path.join(self.directory, "vm1.log"), encoding="utf-8") as log:
            self.assertIn("vCPU 0", log.read())
        self.assertIn(os.path.join(self.directory, "vm1.log"), self.refused(1, "status", "vm1"))

    def test_without_the_right_to_lift_threads_the_log_says_so_once_and_stops_work(self):
        whole = vm_case.STOPVISOR
        self.addCleanup(setattr, vm_case, "STOPVISOR", whole)
        script = os.path.join(self.runtime, "unprivileged")
        with open(script, "w", encoding="utf-8") as out:
            out.write('#!/bin/sh\nexec prlimit --rtprio=0 setpriv --bounding-set -sys_nice --inh-caps -sys_nice '
                      f'"{whole}" "$@"\n')
        os.chmod(script, 0o755)
        if os.geteuid() != 0:
            script = whole  # has no such right to begin with, but for its limit
        vm_case.STOPVISOR = script
        self.start("--cpus", 4)
        self.good("pause", "vm1")
        self.good("resume", "vm1")
        self.assertEqual(self.log_of_start("vm1").count("may not raise its threads' priority"), 1)
        vm_case.STOPVISOR = whole
        self.start("--cpus", 1, name="vm2")
        self.assertEqual(self.log_of_start("vm2").count("may not raise"), 0 if os.geteuid() == 0 else 1)

    def log_of_start(self, name):
        """The log, once it has the last line of the start, which is written after `run --detach` has returned."""
        self.eventually(lambda: f"{name}: running, pid " in self.log(name), f"{name} says that it runs")
        return self.log(name)

    def test_a_foreground_vm_prints_its_serial_port_to_stdout(self):
        child = self.foreground()
        self.wait_until_guest_runs(1)
        self.good("shutdown", "vm1")
        output, errors = child.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual(child.returncode, 0, errors)
        self.assertNotEqual(output, b"")

    def test_json_in_the_foreground_is_one_document(self):
        child = self.foreground("--json")
        self.good("shutdown", "vm1", "--now")
        output, _ = child.communicate(timeout=vm_case.LIMIT_S)
        self.assertEqual(json.loads(output), {"vm": "vm1", "end": "requested", "status": 0})

    def test_the_serial_port_can_go_to_a_file(self):
        path = os.path.join(self.runtime, "serial")
        self.start("--serial", f"file:{path}")
        self.wait_until_guest_runs(1)
        self.good("shutdown", "vm1")
        self.assertGreater(os.path.getsize(path), 0)

    def test_a_limit_on_files_is_an_error_of_the_disk_and_not_the_end_of_the_vm(self):
        disk = os.path.join(self.runtime, "disk")
        with open(disk, "wb") as image:
            image.truncate(1 << 20)

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, 512 << 10))

        path = raw_guest.kernel(raw_guest.write_disk(sector=1024))
        self.addCleanup(os.unlink, path)
        child = self.foreground("--kernel", path, "--memory", "4M", "--disk", disk, preexec_fn=limit)
        self.assertEqual(child.stdout.read(1), b"e")
        self.assertIsNone(child.poll())
        self.good("shutdown", "vm1", "--now")

    def test_a_killed_vm_leaves_a_stale_socket_that_ls_removes(self):
        pid = self.start()
        os.kill(pid, signal.SIGKILL)
        self.eventually(lambda: not vm_case.alive(pid), "death")
        self.assertIn("vm1.sock", self.left_behind())
        self.assertIn("no such VM", self.refused(1, "status", "vm1"))
        self.good("ls")
        self.assertEqual([name for name in self.left_behind() if not name.endswith(".log")], [])

    def test_a_stale_socket_does_not_keep_its_name(self):
        pid = self.start()
        os.kill(pid, signal.SIGKILL)
        self.eventually(lambda: not vm_case.alive(pid), "death")
        self.start()
        self.assertEqual(self.status()["state"], "running")

    def test_a_running_vm_is_never_taken_over(self):
        pid = self.start()
        for options in ((), ("--detach",)):
            line = self.refused(3, "run", "--name", "vm1", "--serial", "none", *options)
            self.assertIn(f"a VM named vm1 is already running (pid {pid})", line)
        self.assertEqual(self.status()["pid"], pid)

    def test_a_vm_that_does_not_exist_is_an_error_that_names_those_that_do(self):
        self.start(name="apple")
        line = self.refused(1, "status", "pear")
        self.assertEqual(line, "stopvisor: status: pear: no such VM; running: apple")

    def test_a_terminal_is_restored(self):
        import pty
        leader, follower = pty.openpty()
        self.addCleanup(os.close, leader)
        self.addCleanup(os.close, follower)
        before = termios.tcgetattr(follower)
        child = self.foreground(stdin=follower, stdout=subprocess.DEVNULL, start_new_session=True)
        self.assertNotEqual(termios.tcgetattr(follower)[3], before[3])  # raw: no echo
        child.terminate()
        self.assertEqual(child.wait(vm_case.LIMIT_S), 128 + signal.SIGTERM)
        self.assertEqual(termios.tcgetattr(follower), before)

    def test_a_second_signal_ends_at_once_and_restores_the_terminal(self):
        import pty
        leader, follower = pty.openpty()
        self.addCleanup(os.close, leader)
        self.addCleanup(os.close, follower)
        before = termios.tcgetattr(follower)
        child = self.foreground(stdin=follower, stdout=subprocess.DEVNULL, start_new_session=True)
        # Both are there when it looks. Whether it is through with the first when it sees the second is its own race.
        child.send_signal(signal.SIGSTOP)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGCONT)
        self.assertIn(child.wait(vm_case.LIMIT_S), (128 + signal.SIGINT, 128 + signal.SIGTERM))
        self.assertEqual(termios.tcgetattr(follower), before)


if __name__ == "__main__":
    vm_case.main()
