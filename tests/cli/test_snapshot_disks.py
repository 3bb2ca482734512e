# SPDX-License-Identifier: Apache-2.0
"""snapshot create --disks, and the disks of a guest that goes on: its own image, as of the moment of its memory."""

import os
import shutil
import signal
import struct
import unittest

import raw_guest
import vm_case
from vm_case import VmCase

MIB = 1 << 20


class DiskCase(VmCase):
    """A guest that counts on its disk, "image"."""

    def setUp(self):
        super().setUp()
        self.place = os.path.join(self.runtime, "snapshot")
        self.image = self.file("disk")

    def file(self, name):
        return os.path.join(self.runtime, name)

    @staticmethod
    def number_in(path):
        with open(path, "rb") as stream:
            return struct.unpack("<I", stream.read(4))[0]

    def goes_on(self, path):
        """The guest of this image writes to it."""
        before = self.number_in(path)
        self.eventually(lambda: self.number_in(path) > before, f"more is written to {path}")

    def create(self, *options, place=None):
        return self.good("snapshot", "create", "vm1", place or self.place, *options)

    def words_of_restore(self, name, *options, place=None):
        return ("run", "--restore", place or self.place, "--name", name, "--detach", *options)

    def restore(self, name, *options, place=None):
        self.good(*self.words_of_restore(name, *options, place=place))
        self.pids.append(self.status(name)["pid"])

    def is_of_one_moment(self, place):
        with open(os.path.join(place, "memory.raw"), "rb") as memory:
            memory.seek(raw_guest.DISK_USED + 2)
            done = struct.unpack("<H", memory.read(2))[0]
        self.assertEqual(self.number_in(os.path.join(place, "disk-0.img")) & 0xffff, done)
        self.goes_on(self.image)


class Disks(DiskCase):
    def setUp(self):
        super().setUp()
        self.shared = self.file("shared")
        with open(self.image, "wb") as stream:
            stream.truncate(2 * MIB + 512)
            stream.seek(MIB + 4096)
            stream.write(b"far")
        with open(self.shared, "wb") as stream:
            stream.write(b"s" * 512)
        self.start_raw(raw_guest.count_on_disk(), "--disk", self.image, "--disk", self.shared + ",ro")
        self.goes_on(self.image)

    def refused_restore(self, status, *options):
        """And nothing is left of the try."""
        before = sorted(os.listdir(self.runtime))
        line = self.refused(status, *self.words_of_restore("vm2", *options))
        self.assertEqual(sorted(os.listdir(self.runtime)), before)
        return line

    def end(self, name="vm1"):
        self.good("shutdown", name, "--now")

    def test_an_image_is_as_of_the_same_moment_as_memory(self):
        for number in range(3):
            place = f"{self.place}{number}"
            self.assertIn(", 1 disk; the guest was held", self.create("--disks", place=place))
            self.is_of_one_moment(place)

    def test_a_signal_ends_a_restore_before_there_is_a_vm(self):
        self.create("--disks")
        with open(os.path.join(self.place, "disk-0.img"), "r+b") as stream:  # nobody is to come so far as to see that
            stream.seek(MIB + 4096)
            stream.write(b"gone")
        before = sorted(os.listdir(self.runtime))

        def with_a_signal_that_waits():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            os.kill(os.getpid(), signal.SIGTERM)

        words = ("run", "--restore", self.place, "--name", "vm2", "--disk", "0=" + self.file("new"))
        done = self.stopvisor(*words, preexec_fn=with_a_signal_that_waits)
        self.assertEqual(done.returncode, 128 + signal.SIGTERM, done.stderr)
        self.assertNotIn("running", done.stderr)
        self.assertEqual(sorted(os.listdir(self.runtime)), before)
        self.assertNotIn("vm2", "".join(self.left_behind()))

    def test_so_it_is_while_the_guest_goes_on(self):
        for number in range(3):
            place = f"{self.place}{number}"
            made = self.stopvisor("snapshot", "create", "vm1", place, "--disks", "--live")
            if made.returncode == 3 and "userfaultfd" in made.stderr:
                self.skipTest(made.stderr)
            self.assertEqual(made.returncode, 0, made.stderr)
            self.is_of_one_moment(place)

    def test_a_guest_goes_on_with_an_image_of_its_own(self):
        self.create("--disks")
        then = self.number_in(os.path.join(self.place, "disk-0.img"))
        self.restore("vm2", "--paused", "--disk", "0=" + self.file("own"))
        self.assertEqual(self.number_in(self.file("own")), then)
        self.assertEqual(os.path.getsize(self.file("own")), 2 * MIB + 512)
        with open(self.file("own"), "rb") as stream:
            stream.seek(MIB + 4096)
            self.assertEqual(stream.read(3), b"far")
        self.good("resume", "vm2")
        self.goes_on(self.file("own"))
        self.restore("vm3", "--disk", "0=" + self.file("another"), "--disk", "1=" + self.shared)
        self.goes_on(self.file("another"))
        self.goes_on(self.image)  # the first one's
        self.assertEqual(self.number_in(os.path.join(self.place, "disk-0.img")), then)
        self.assertEqual(self.good("snapshot", "verify", self.place), f"{self.place}: good\n")

    def test_an_image_in_the_snapshot_needs_a_place_where_nothing_is(self):
        self.create("--disks")
        self.assertIn("--disk 0=FILE", self.refused_restore(3))
        self.assertIn("exists already; it was left as it is", self.refused_restore(3, "--disk", "0=" + self.shared))
        self.assertIn("No such file", self.refused_restore(1, "--disk", "0=" + self.file("none/there")))
        self.assertIn("has no disk 2", self.refused_restore(2, "--disk", "2=x"))
        for words in (["--disk", "x"], ["--disk", "0="], ["--disk", "-1=x"], ["--disk", "0=x", "--disk", "0=y"],
                      ["--disk", self.shared]):
            self.assertIn("run: --disk", self.refused_restore(2, *words))

    def test_an_image_that_was_changed_is_refused_by_name(self):
        key = self.file("key")
        with open(key, "wb") as stream:
            stream.write(os.urandom(32))
        self.create("--disks", "--key", key)
        words = ["--disk", "0=" + self.file("own"), "--key", key]
        for file, at in (("disk-0.img", 0), ("disk-0.img", 2 * MIB + 511), ("disk-0.img", 20000), ("disk-0.idx", 40),
                         ("memory.raw", raw_guest.DISK_DATA)):
            with open(os.path.join(self.place, file), "r+b") as stream:
                stream.seek(at)
                byte = stream.read(1)[0]
                stream.seek(at)
                stream.write(bytes([byte ^ 1]))
                stream.flush()
                self.assertIn(file, self.refused(3, "snapshot", "verify", self.place, "--key", key))
                self.assertIn(file, self.refused_restore(3, *words))
                stream.seek(at)
                stream.write(bytes([byte]))
        self.restore("vm2", *words)
        self.goes_on(self.file("own"))

    def test_an_image_that_was_written_since_is_refused(self):
        self.create("--keep-held")
        self.assertIn("in use", self.refused_restore(4))
        self.end()
        copy = self.file("copy")
        shutil.copy(self.image, copy)
        self.restore("vm3")
        self.goes_on(self.image)
        self.end("vm3")
        self.assertIn(f"{self.image}: was written since the snapshot", self.refused_restore(3))
        self.restore("vm4", "--disk", "0=" + copy)
        self.goes_on(copy)
        self.restore("vm5", "--disks-as-they-are")

    def test_images_go_with_a_chain_and_are_listed(self):
        self.create("--disks", "--compress", "--keep-held")
        then = self.number_in(self.image)
        merged = self.file("merged")
        self.good("snapshot", "chain", "merge", self.place, merged)
        self.assertIn("disk 0:   2.0 MiB", self.good("snapshot", "info", merged))
        shutil.rmtree(self.place)
        self.restore("vm2", "--disk", "0=" + self.file("own"), "--paused", place=merged)
        self.assertEqual(self.number_in(self.file("own")), then)

    def test_an_option_without_its_verb_is_named(self):
        self.assertIn("goes with --restore", self.refused(2, "run", "--disks-as-they-are"))
        self.assertIn("are for 'snapshot create'", self.refused(2, "snapshot", "verify", "x", "--disks"))


@unittest.skipUnless(vm_case.may_watch_memory(), "userfaultfd cannot be used")
class PlacesOfKvm(VmCase):
    """A guest's memory that KVM itself uses: who waits for it in there cannot be told that it is bad."""

    PLACES = {0x4b564d00: 0x300000, 0x4b564d01: 0x400001, 0x4b564d02: 0x500001, 0x4b564d03: 0x600001, 0x4b564d04: 0x700001}

    def test_one_that_is_bad_is_refused_before_the_guest_runs_and_nothing_is_left(self):
        place, image, new = (os.path.join(self.runtime, name) for name in ("snapshot", "disk", "new"))
        with open(image, "wb") as stream:
            stream.truncate(MIB)
        code = b"".join(raw_guest.poke((at & ~1) + 2048, 1) + raw_guest.write_msr(msr, at) for msr, at in self.PLACES.items())
        self.start_raw(code + raw_guest.say(b"up") + raw_guest.loop(b""), "--disk", image, "--memory", "8M")
        self.eventually(lambda: self.good("console", "vm1", "--log") == "up", "its start")
        self.good("snapshot", "create", "vm1", place, "--disks")
        words = ("run", "--restore", place, "--name", "vm2", "--verify", "touch", "--disk", "0=" + new, "--detach")
        before = sorted(os.listdir(self.runtime))
        for at in self.PLACES.values():
            with open(os.path.join(place, "memory.raw"), "r+b") as stream:
                for value in (b"\x02", b"\x01"):
                    stream.seek((at & ~1) + 2048)
                    stream.write(value)
                    stream.flush()
                    if value == b"\x02":
                        self.assertEqual(f"stopvisor: run: restore: {place}/memory.raw: extent {at // MIB} is not what its checksum says",
                                         self.refused(3, *words))
                        self.assertEqual(sorted(os.listdir(self.runtime)), before)
        self.good(*words)
        self.pids.append(self.status("vm2")["pid"])
        self.assertTrue(os.path.exists(new))


if __name__ == "__main__":
    vm_case.main()
