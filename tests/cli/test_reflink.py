# SPDX-License-Identifier: Apache-2.0
"""Images of disks on file systems that share blocks: a snapshot's copy, and a clone's, take no room.

The file systems are made in files, and mounted where nobody else sees them: they go with this process, however it ends."""

import array
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess

import raw_guest
import vm_case
from test_snapshot_disks import DiskCase

MIB = 1 << 20
FAR = 8 * MIB  # of the image: where the guest does not write
FAR_BYTES = 16 * MIB
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18  # linux/sched.h, linux/mount.h
FS_IOC_FIEMAP, FIEMAP_FLAG_SYNC, FIEMAP_EXTENT_SHARED = 0xC020660B, 1, 0x2000  # linux/fiemap.h
MOST_EXTENTS = 256


def keep_mounts_to_ourselves():
    """Returns why we cannot mount a file system, or an empty string."""
    if os.geteuid() != 0:
        return "only root can mount a file"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return os.strerror(ctypes.get_errno())
    return ""


WHY_NOT = keep_mounts_to_ourselves()


def shared_bytes(path, begin, length):
    """How many bytes of this part of a file are in blocks that another file has as well (Linux, filesystems/fiemap.rst)."""
    with open(path, "rb") as stream:
        ask = array.array("B", struct.pack("<QQIIII", begin, length, FIEMAP_FLAG_SYNC, 0, MOST_EXTENTS, 0) + bytes(56 * MOST_EXTENTS))
        fcntl.ioctl(stream, FS_IOC_FIEMAP, ask)
    found = struct.unpack_from("<QQIIII", ask)[3]
    total = 0
    for number in range(found):
        logical, _, size, _, _, flags = struct.unpack_from("<QQQQQI", ask, 32 + 56 * number)
        if flags & FIEMAP_EXTENT_SHARED:
            total += min(logical + size, begin + length) - max(logical, begin)
    return total


class Reflink(DiskCase):
    def mount(self, kind):
        if WHY_NOT:
            self.skipTest(WHY_NOT)
        if shutil.which("mkfs." + kind, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            self.skipTest(f"there is no mkfs.{kind}")
        backing, where = self.file(kind + ".img"), self.file(kind)
        with open(backing, "wb") as stream:
            stream.truncate(400 * MIB)
        os.mkdir(where)
        env = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
        for words in ([f"mkfs.{kind}", "-q", backing], ["mount", "-t", kind, "-o", "loop", backing, where]):
            done = subprocess.run(words, env=env, text=True, capture_output=True, check=False)
            if done.returncode != 0:
                self.skipTest(f"{words[0]}: {done.stderr.strip().splitlines()[-1:]}")
        self.addCleanup(subprocess.run, ["umount", where], check=True)
        self.addCleanup(self.end_all)  # goes first: a guest has a file there
        return where

    def on(self, kind):
        where = self.mount(kind)
        self.image = os.path.join(where, "disk")
        with open(self.image, "wb") as stream:
            stream.truncate(FAR + FAR_BYTES)
            stream.seek(FAR)
            stream.write(os.urandom(FAR_BYTES))
        self.start_raw(raw_guest.count_on_disk(), "--disk", self.image)
        self.goes_on(self.image)
        self.assertEqual(shared_bytes(self.image, FAR, FAR_BYTES), 0)
        self.place = os.path.join(where, "snapshot")
        merged, own = os.path.join(where, "merged"), os.path.join(where, "own")
        self.create("--disks")
        self.is_of_one_moment(self.place)
        self.good("snapshot", "chain", "merge", self.place, merged)
        self.restore("vm2", "--disk", "0=" + own, place=merged)
        for path in (os.path.join(self.place, "disk-0.img"), os.path.join(merged, "disk-0.img"), own):
            self.assertEqual(shared_bytes(path, FAR, FAR_BYTES), FAR_BYTES, path)
        self.goes_on(own)
        self.goes_on(self.image)
        for place in (self.place, merged):
            self.good("snapshot", "verify", place)

    def test_images_on_xfs_share_their_blocks(self):
        self.on("xfs")

    def test_images_on_btrfs_share_their_blocks(self):
        self.on("btrfs")


if __name__ == "__main__":
    vm_case.main()
