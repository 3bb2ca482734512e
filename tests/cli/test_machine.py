# SPDX-License-Identifier: Apache-2.0
"""run --machine: machines written down, and given back by status --dtb."""

import os
import shutil
import subprocess
import unittest

import raw_guest
import vm_case
from vm_case import VmCase

NO_DTC = shutil.which("dtc") is None
SMALL = """/dts-v1/;
/ {
    compatible = "stopvisor,machine-v1";
    #address-cells = <2>;
    #size-cells = <2>;
    %s
    cpus {
        #address-cells = <1>;
        #size-cells = <0>;
        cpu@0 { device_type = "cpu"; compatible = "stopvisor,x86-64"; reg = <0>; };
        cpu@1 { device_type = "cpu"; compatible = "stopvisor,x86-64"; reg = <1>; status = "disabled"; };
    };
    memory@0 { device_type = "memory"; reg = <0 0 0 0x4000000>; };
    %s
};
"""


class Machine(VmCase):
    def dtb(self, name="vm1"):
        return self.stopvisor("status", name, "--dtb", text=False).stdout

    def write(self, name, content):
        path = os.path.join(self.runtime, name)
        with open(path, "wb") as out:
            out.write(content if isinstance(content, bytes) else content.encode())
        return path

    def make_again(self):
        """Ends vm1, starts what its description says, and returns both descriptions."""
        before = self.dtb()
        path = self.write("again.dtb", before)
        self.good("shutdown", "vm1", "--now")
        self.pids.append(int(self.good("run", "--machine", path, "--detach").split()[-1]))
        return before, self.dtb()

    def test_a_machine_made_from_its_description_has_the_same_description(self):
        for options in ((), ("--cpus", 3, "--max-cpus", 7, "--memory", "96M"), ("--memory-backing", "memfd"),
                        ("--cmdline", "scenarios=gap text='with spaces'"), ("--memory", "4G", "--cpus", 2)):
            with self.subTest(options=options):
                self.start(*options)
                before, after = self.make_again()
                self.assertEqual(before[:4], b"\xd0\x0d\xfe\xed")
                self.assertEqual(after, before)
                self.good("shutdown", "vm1", "--now")

    def test_kernel_initrd_and_command_line_are_part_of_it(self):
        initrd = self.write("initrd", b"not looked at")
        self.start_raw(raw_guest.say(b"up"), "--initrd", initrd, "--cmdline", "one two")
        before, after = self.make_again()
        self.assertEqual(after, before)
        self.eventually(lambda: self.stopvisor("console", "vm1", "--log").stdout == "up", "the same guest")

    def test_disks_are_part_of_it(self):
        disks = [self.write(name, b"\0" * 8192) for name in ("one", "two")]
        self.start_raw(raw_guest.echo(), "--disk", disks[0], "--disk", disks[1] + ",ro")
        before, after = self.make_again()
        self.assertEqual(after, before)
        for disk in disks:
            self.assertIn(disk.encode() + b"\0", after)

    def test_the_same_machine_runs_under_another_name(self):
        self.start("--cpus", 2)
        path = self.write("m.dtb", self.dtb())
        self.assertIn("vm1 is already running", self.refused(3, "run", "--machine", path, "--detach"))
        self.start("--machine", path, name="vm2")
        self.wait_until_guest_runs(2, "vm2")

    @unittest.skipIf(NO_DTC, "no dtc (package device-tree-compiler)")
    def test_a_source_needs_only_what_differs(self):
        path = self.write("small.dts", SMALL % ('stopvisor,name = "small";', ""))
        self.pids.append(int(self.good("run", "--machine", path, "--detach").split()[-1]))
        status = self.status("small")
        self.assertEqual((status["cpus"], status["max_cpus"], status["memory_bytes"]), (1, 2, 64 << 20))
        again = subprocess.run(["dtc", "-I", "dtb", "-O", "dts"], input=self.dtb("small"), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, check=True)
        self.assertEqual(again.stderr, b"")
        self.start("--machine", self.write("again.dts", again.stdout), name="other")  # dtc's own output is a source
        self.assertEqual(self.dtb("other").replace(b"other\0", b"small\0"), self.dtb("small"))

    @unittest.skipIf(NO_DTC, "no dtc (package device-tree-compiler)")
    def test_files_are_found_beside_the_description(self):
        kernel = raw_guest.kernel(raw_guest.say(b"up"))
        self.addCleanup(os.unlink, kernel)
        shutil.copy(kernel, os.path.join(self.runtime, "kernel"))
        self.write("disk", b"\0" * 4096)
        disk = """virtio@d0100000 { compatible = "stopvisor,block-v1", "virtio,mmio"; reg = <0 0xd0100000 0 0x1000>;
                  stopvisor,path = "disk"; stopvisor,read-only; };"""
        path = self.write("m.dts", SMALL % ("", 'chosen { stopvisor,kernel = "kernel"; };' + disk))
        self.start("--machine", path)
        self.assertEqual(self.status()["kernel"], os.path.join(self.runtime, "kernel"))
        before, after = self.make_again()
        self.assertEqual(after, before)
        self.assertIn(os.path.join(self.runtime, "disk").encode() + b"\0", after)

    @unittest.skipIf(NO_DTC, "no dtc (package device-tree-compiler)")
    def test_what_is_wrong_is_named(self):
        path = self.write("m.dts", SMALL % ("", "gpu@d0000000 { reg = <0 0xd0000000 0 0x1000>; };"))
        self.assertIn(f"machine file: {path}: /gpu@d0000000: no such part", self.refused(2, "run", "--machine", path))
        path = self.write("bad.dts", "/dts-v1/;\n/ { this is none };\n")
        self.assertIn("bad.dts:2.10-11 syntax error", self.refused(2, "run", "--machine", path))
        self.assertIn("No such file", self.refused(1, "run", "--machine", "/nowhere.dtb"))

    def test_without_dtc_a_source_is_refused_with_the_package_to_install(self):
        path = self.write("m.dts", SMALL % ("", ""))
        line = self.refused(1, "run", "--machine", path, env=dict(self.env, PATH="/nowhere"))
        self.assertIn("package device-tree-compiler", line)

    def test_options_that_the_file_answers_are_refused(self):
        path = self.write("m.dtb", b"not even read")
        for option in (("--cpus", "1"), ("--max-cpus", "1"), ("--memory", "64M"), ("--memory-backing", "anon"),
                       ("--kernel", "k"), ("--initrd", "i"), ("--cmdline", "c"), ("--disk", "d"), ("--net", "tap=tap0")):
            self.assertIn(option[0], self.refused(2, "run", "--machine", path, *option))

    def test_a_relative_kernel_is_found_again_at_a_reset(self):
        path = raw_guest.kernel(raw_guest.say(b"up ") + raw_guest.reset_when_told())
        self.addCleanup(os.unlink, path)
        self.good("run", "--name", "vm1", "--detach", "--memory", "4M", "--kernel", os.path.basename(path),
                  cwd=os.path.dirname(path))
        self.pids.append(self.status()["pid"])
        connection = self.connect()
        connection.sock.sendall(
            b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: stopvisor-console\r\n\r\nx")
        self.eventually(lambda: self.stopvisor("console", "vm1", "--log").stdout == "up up ", "its second start")


if __name__ == "__main__":
    vm_case.main()
