# SPDX-License-Identifier: Apache-2.0
"""What users are told of network devices that cannot be: one clear line, and nothing left behind."""

import json
import os
import subprocess
import unittest

import vm_case
from vm_case import STOPVISOR, CommandCase, VmCase

IN_OWN_NETWORK = ["unshare", "--user", "--map-root-user", "--net"]


def own_network_usable():
    """Whether we get a network namespace where taps can be made."""
    try:
        return subprocess.run([*IN_OWN_NETWORK, "test", "-w", "/dev/net/tun"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


class NetOption(CommandCase):
    """What is refused before any VM is touched: needs no KVM."""

    def test_what_is_no_network_device_is_wrong_usage(self):
        for text, reason in (
                ("", "must be tap=INTERFACE or tap=INTERFACE,mac=ADDRESS"),
                ("user", "must be tap=INTERFACE or tap=INTERFACE,mac=ADDRESS"),
                ("tap=a,", "must be tap=INTERFACE or tap=INTERFACE,mac=ADDRESS"),
                ("tap=a,tap=b", "must be tap=INTERFACE or tap=INTERFACE,mac=ADDRESS"),
                ("mac=02:00:00:00:00:01", "lacks tap=INTERFACE"),
                ("tap=", "needs the name of an interface"),
                ("tap=a/b", "a/b cannot be the name of an interface"),
                ("tap=abcdefghijklmnop", "is too long for the name of an interface (at most 15 bytes)"),
                ("tap=a,mac=", "mac= must be six bytes"),
                ("tap=a,mac=02:00:00:00:00:1", "mac= must be six bytes"),
                ("tap=a,mac=ff:ff:ff:ff:ff:ff", "and of one machine")):
            with self.subTest(text=text):
                line = self.refused(2, "run", "--net", text)
                self.assertIn("run: --net: " + (text + ": " if text else ""), line)
                self.assertIn(reason, line)
        self.assertEqual(self.left_behind(), [])


class TapErrors(VmCase):
    """What Vm::create() refuses."""

    def test_a_tap_or_an_address_given_twice_is_wrong_usage(self):
        self.assertIn("tap0: is given twice", self.refused(2, "run", "--net", "tap=tap0", "--net", "tap=tap0"))
        mac = ",mac=02:00:00:00:00:01"
        self.assertIn("tap1: 02:00:00:00:00:01 is also the address at tap0",
                      self.refused(2, "run", "--net", "tap=tap0" + mac, "--net", "tap=tap1" + mac))
        self.assertEqual(self.left_behind(), [])

    @unittest.skipUnless(os.access("/dev/net/tun", os.R_OK | os.W_OK), "no /dev/net/tun")
    def test_an_interface_that_is_no_tap_is_named(self):
        self.assertIn("open tap: lo: is an interface, but no tap", self.refused(1, "run", "--net", "tap=lo"))
        self.assertEqual(self.left_behind(), [])


@unittest.skipUnless(own_network_usable(), "no network namespace of our own, or no /dev/net/tun")
class TapInUse(VmCase):
    """VMs at taps, in a network of their own."""

    def test_one_vm_has_a_tap_and_the_next_is_told_so(self):
        script = (f"{STOPVISOR} run --name vm1 --net tap=sv0 --detach --json && {STOPVISOR} status vm1 --json; "
                  f"{STOPVISOR} run --name vm2 --net tap=sv0 >&2; echo $?; {STOPVISOR} shutdown vm1 --now")
        done = subprocess.run([*IN_OWN_NETWORK, "sh", "-c", script], env=self.env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=vm_case.LIMIT_S,
                              check=False)
        decoder = json.JSONDecoder()
        started, end = decoder.raw_decode(done.stdout)
        self.pids.append(started["pid"])
        status, end = decoder.raw_decode(done.stdout, done.stdout.index("{", end))
        self.assertEqual([device["device"] for device in status["devices"]], ["net0"])
        self.assertIn("open tap: sv0: is used by another program", done.stderr)
        self.assertIn("\n4\n", done.stdout)


if __name__ == "__main__":
    vm_case.main()
