# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels, and the modules a machine of the lab needs of them, in the order they load."""

import lzma
import os
import shutil
import struct
import subprocess
import zlib

from skip import Unavailable

VMRUN = b"\x0f\x01\xd8"  # AMD's manual, volume 3
METAPACKAGES = {"cloud": "linux-image-cloud-amd64", "amd64": "linux-image-amd64"}


# What a bzImage's payload begins with, and how it is unpacked (Linux, Documentation/arch/x86/boot.rst, payload_offset).
LZ4_LEGACY, ZSTD = b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd"
UNPACKERS = {
    b"\x1f\x8b": lambda data: zlib.decompress(data, wbits=31),
    b"\xfd7zXZ": lambda data: lzma.LZMADecompressor().decompress(data),
    LZ4_LEGACY: lambda data: _unpacked_by("lz4", data[:-4]),  # all but gzip are followed by the size they unpack to
    ZSTD: lambda data: _unpacked_by("zstd", data[:-4]),
    b"\x7fELF": lambda data: data,
}


def _unpacked_by(program, data):
    if shutil.which(program) is None:
        raise Unavailable(f"the kernel is packed with {program} (Debian: {program}), which this host does not have")
    done = subprocess.run([program, "-dc"], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise Unavailable(f"unpack a kernel with {program}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout


def elf_of(image):
    """The ELF file inside a bzImage, given as bytes: what its own code unpacks at boot."""
    setup_sectors = image[0x1F1] or 4
    at, length = struct.unpack_from("<II", image, 0x248)  # payload_offset, payload_length
    at += (setup_sectors + 1) * 512
    payload = image[at:at + length]
    for magic, unpack in UNPACKERS.items():
        if payload.startswith(magic):
            return unpack(payload)
    raise Unavailable(f"a kernel's payload begins with {payload[:8].hex()}: packed with something unknown")


def function(data, name):
    """The code of a function of an ELF64 object file, given as bytes; empty where there is none of that name."""
    at, = struct.unpack_from("<Q", data, 0x28)  # e_shoff
    count, = struct.unpack_from("<H", data, 0x3C)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, at + 64 * number) for number in range(count)]
    for _, kind, _, _, offset, size, link, _, _, _ in headers:
        if kind != 2:  # SHT_SYMTAB
            continue
        strings = headers[link][4]
        for symbol in range(offset, offset + size, 24):
            text, info, _, section, value, length = struct.unpack_from("<IBBHQQ", data, symbol)
            if info & 15 == 2 and data.startswith(name + b"\0", strings + text):  # STT_FUNC
                begin = headers[section][4] + value
                return data[begin:begin + length]
    return b""


def _read(path):
    with open(path, "rb") as file:
        return file.read()


class Kernel:
    """One unpacked kernel package."""

    def __init__(self, packages, flavour):
        self.flavour = flavour
        self.package = packages.behind(METAPACKAGES[flavour])
        self.version = self.package.removeprefix("linux-image-")
        self.tree = packages.tree(self.package)
        self.image = os.path.join(self.tree, "boot", "vmlinuz-" + self.version)
        self.system_map = os.path.join(self.tree, "boot", "System.map-" + self.version)
        self._modules = {}
        for folder, _, names in os.walk(os.path.join(self.tree, "lib", "modules", self.version)):
            for name in names:
                if name.endswith(".ko"):
                    self._modules[name[:-3].replace("-", "_")] = os.path.join(folder, name)

    def vmlinux(self):
        """The kernel's ELF file, without what packs it."""
        return elf_of(_read(self.image))

    def modules(self, wanted):
        """(name, contents) of each module and of what it depends on, in loading order; one that is built into
        this kernel, or that it does not have, is passed by."""
        order = {}

        def visit(name):
            name = name.replace("-", "_")
            if name in order or name not in self._modules:
                return
            data = _read(self._modules[name])
            for need in self._depends(data):
                visit(need)
            order[name] = data

        for name in wanted:
            visit(name)
        return list(order.items())

    def behind_vmrun(self):
        """How far into kvm_amd's __svm_vcpu_run the instruction behind VMRUN is: where KVM goes on after an exit."""
        data = _read(self._modules["kvm_amd"])
        code = function(data, b"__svm_vcpu_run")
        if code.count(VMRUN) != 1:
            raise Unavailable(f"{self.package}: kvm_amd has no __svm_vcpu_run with one VMRUN")
        return code.index(VMRUN) + len(VMRUN)

    @staticmethod
    def _depends(data):
        """What the module says in its .modinfo: the package has no modules.dep, depmod makes that when installed."""
        at = data.find(b"\0depends=")
        return data[at + 9:data.index(b"\0", at + 9)].decode().split(",") if at >= 0 else []
