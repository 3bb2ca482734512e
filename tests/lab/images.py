# SPDX-License-Identifier: Apache-2.0
"""Makes what the machines of the lab boot from, and keeps it: an image's name has the hash of all that is in it."""

import hashlib
import os
import tempfile

import disks
from cpio import Archive
from kernels import Kernel
from packages import Packages

HERE = os.path.dirname(os.path.abspath(__file__))
OUTER_MODULES = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_blk", "ext4", "crc32c_intel",
                 "irqbypass", "kvm", "kvm_amd", "tun", "veth", "bridge", "sch_netem"]
GUEST_MODULES = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "button", "evdev", "atkbd", "pvpanic_mmio",
                 "pvpanic", "ext4", "crc32c_generic"]


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


class Images:
    def __init__(self, cache):
        self.cache = cache
        self.packages = Packages(cache)
        self._kernels = {}

    def kernel(self, flavour):
        if flavour not in self._kernels:
            self._kernels[flavour] = Kernel(self.packages, flavour)
        return self._kernels[flavour]

    def vmlinux(self, flavour):
        """The same kernel as an ELF file, for PVH."""
        return self._keep("vmlinux-" + flavour, self.kernel(flavour).vmlinux(), "")

    def busybox(self):
        return read(self.packages.tree("busybox-static"), "bin", "busybox")

    def outer(self):
        """The initramfs of the outer machine."""
        archive = Archive()
        archive.program("init", read(HERE, "outer_init.sh"))
        archive.program("bin/busybox", self.busybox())
        self._modules(archive, self.kernel("amd64"), OUTER_MODULES)
        archive.add("modules/behind-vmrun", b"%d\n" % self.kernel("amd64").behind_vmrun())
        return self._keep("outer", archive.bytes(), ".cpio")

    def guest(self, flavour, programs=()):
        """The initramfs of a guest with Debian's kernel of that flavour; programs: (path in the guest, file)."""
        archive = Archive()
        archive.program("init", read(HERE, "guest", "init.sh"))
        archive.program("etc/acpi/PWRF/00000080", read(HERE, "guest", "power_button.sh"))
        archive.program("bin/busybox", self.busybox())
        for path, file in programs:
            archive.program(path, read(file))
        self._modules(archive, self.kernel(flavour), GUEST_MODULES)
        return self._keep("guest-" + flavour, archive.bytes(), ".cpio")

    def programs(self):
        """The disk that a guest with `lab.programs` on its command line expects first."""
        return disks.program_disk(self.cache)

    @staticmethod
    def _modules(archive, kernel, wanted):
        modules = kernel.modules(wanted)
        for name, data in modules:
            archive.add(f"modules/{name}.ko", data)
        archive.add("modules/order", "\n".join(name for name, _ in modules).encode() + b"\n")

    def _keep(self, name, data, ending):
        folder = os.path.join(self.cache, "images")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{name}-{hashlib.sha256(data).hexdigest()[:16]}{ending}")
        if not os.path.exists(path):
            part, part_path = tempfile.mkstemp(dir=folder)
            with os.fdopen(part, "wb") as out:
                out.write(data)
            os.rename(part_path, path)
        return path
