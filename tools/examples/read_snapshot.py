#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists and extracts snapshots, by docs/reference/snapshot-format.md and Python's standard library alone.

read_snapshot.py list DIR [--key FILE]
read_snapshot.py extract DIR OUT [--key FILE]     memory, each region from its offset, with its parents' pages
read_snapshot.py extract DIR OUT --disk N [--key FILE]      the image of disk N

Compressed snapshots are read by the program `zstd`. XXH3 is not in Python's library: without a key only the seal's
digest, lengths and structure are checked; with one, every MAC is.
"""
import argparse
import hashlib
import hmac
import json
import os
import stat
import struct
import subprocess
import sys
import tempfile

PAGE, EXTENT = 4096, 1 << 20
MOST_MEMBERS, MOST_SECTIONS, MOST_REGIONS, MOST_DISKS = 64, 65536, 64, 64
MOST_SPAN, MOST_DISK, MOST_FRAME = 1 << 40, 4 << 40, EXTENT + 8192
# The small files: name, most bytes, label of the MAC. A name in a manifest is compared with these, and never opened.
FILES = (("machine.dtb", 2 << 20, "stopvisor.fdt"), ("state.bin", 256 << 20, "stopvisor.state"),
         ("extents.idx", (128 << 20) + 32, "stopvisor.index"))


def fail(what):
    sys.exit(f"read_snapshot: {what}")


def opened(directory, name):
    """A file of the snapshot: no link, which could lead anywhere, and no FIFO, which nobody may ever write."""
    path = os.path.join(directory, name)
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        fail(f"{path}: is no regular file")
    return file


def number(value, least, most, what):
    if type(value) is not int or not least <= value <= most:
        fail(f"{what}: must be {least} to {most}")
    return value


def read(directory, name, most):
    path = os.path.join(directory, name)
    with opened(directory, name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        fail(f"{path}: is too large")
    return content


def mac(key, label, id_, *content):
    hash_ = hashlib.blake2b(key=key, digest_size=32)
    for piece in (label.encode().ljust(16, b"\0"), id_, *content):
        hash_.update(piece)
    return hash_.hexdigest()


def pages_of(bitmap):
    return [n for n in range(EXTENT // PAGE) if bitmap[n // 8] >> (n % 8) & 1]


def decompressed(frame, most):
    """Of what is in the frame no more than a byte too many: a small one can hold any amount."""
    with tempfile.TemporaryFile() as file:
        file.write(frame)
        file.seek(0)
        with subprocess.Popen(["zstd", "-dc"], stdin=file, stdout=subprocess.PIPE) as zstd:
            content = zstd.stdout.read(most + 1)
    if zstd.returncode != 0 and len(content) <= most:
        fail("zstd: failed")
    return content


class Snapshot:
    def __init__(self, directory, key):
        self.directory, self.key = directory, key
        text = read(directory, "manifest.json", 1 << 20)
        seal = read(directory, "seal", 4096).decode().splitlines()
        self.digest = hashlib.blake2b(text, digest_size=32).hexdigest()
        if seal[0] != "stopvisor-seal 1" or seal[1] != "digest " + self.digest:
            fail(f"{directory}: the manifest is not what the seal says")
        if key and (len(seal) != 3 or not hmac.compare_digest(seal[2], "mac " + mac(key, "stopvisor.seal", bytes(16), text))):
            fail(f"{directory}: is not sealed with this key")
        self.manifest = json.loads(text)
        if self.manifest["format"] not in (1, 2):
            fail(f"{directory}: has another format")
        self.id = bytes.fromhex(self.manifest["id"])
        if len(self.manifest["files"]) != len(FILES) or len(self.manifest.get("disks", [])) > MOST_DISKS:
            fail(f"{directory}: has not the files it should have")
        self.span = self.span_of_memory()
        self.machine, self.state, index = (self.small(*pair) for pair in zip(self.manifest["files"], *zip(*FILES)))
        magic, extent, page, count, zero = struct.unpack_from("<8sIIQQ", index)
        if (magic, extent, page, zero) != (b"SVINDEX1", EXTENT, PAGE, 0) or len(index) != 32 + 128 * count:
            fail(f"{directory}/extents.idx: is no index")
        if count != (self.span + EXTENT - 1) // EXTENT:
            fail(f"{directory}/extents.idx: is not of this memory")
        self.extents = [struct.unpack_from("<QIIQQ32s32s32s", index, 32 + 128 * n) for n in range(count)]

    def span_of_memory(self):
        regions, end = self.manifest["memory"]["regions"], 0
        if not 1 <= len(regions) <= MOST_REGIONS:
            fail(f"{self.directory}: must have 1 to {MOST_REGIONS} regions of memory")
        for region in regions:
            at = (end + (2 << 20) - 1) // (2 << 20) * (2 << 20)
            number(region["offset"], at, at, f"{self.directory}: offset of a region")
            end = at + number(region["bytes"], PAGE, MOST_SPAN - at, f"{self.directory}: bytes of a region")
        return end

    def extract_disk(self, disk, out):
        """Puts the image of a disk together, each MiB checked."""
        disks = self.manifest.get("disks", [])
        if not 0 <= disk < len(disks) or "index" not in disks[disk]:
            fail(f"{self.directory}: has no image of disk {disk}")
        size = number(disks[disk]["bytes"], 1, MOST_DISK, f"{self.directory}: bytes of disk {disk}")
        place = os.path.join(self.directory, f"disk-{disk}")
        most = 32 + 48 * ((size + EXTENT - 1) // EXTENT)
        index = self.small(disks[disk]["index"], f"disk-{disk}.idx", most, "stopvisor.diskix")
        magic, extent, zero, count, zero_too = struct.unpack_from("<8sIIQQ", index)
        if (magic, extent, zero, zero_too) != (b"SVDISKX1", EXTENT, 0, 0) or len(index) != 32 + 48 * count:
            fail(f"{place}.idx: is no index")
        with opened(self.directory, f"disk-{disk}.img") as image:
            if count != (size + EXTENT - 1) // EXTENT or os.fstat(image.fileno()).st_size != size:
                fail(f"{place}.img: has not its length")
            os.ftruncate(out, size)
            for n in range(count):
                _, has_data, _, sum_ = struct.unpack_from("<QII32s", index, 32 + 48 * n)
                content = os.pread(image.fileno(), EXTENT, n * EXTENT)
                if any(content) != bool(has_data):
                    fail(f"{place}.img: extent {n} is all zeros, or is not")
                head = struct.pack("<QQ", disk, n)
                if has_data and self.key and mac(self.key, "stopvisor.disk", self.id, head, content) != sum_.hex():
                    fail(f"{place}.img: extent {n} was changed by somebody without the key")
                if has_data:
                    os.pwrite(out, content, n * EXTENT)

    def small(self, entry, name, most, label):
        if entry["name"] != name:
            fail(f"{self.directory}: names another file in the place of {name}")
        content = read(self.directory, name, number(entry["bytes"], 0, most, f"{self.directory}: bytes of {name}"))
        if len(content) != entry["bytes"]:
            fail(f"{self.directory}/{name}: has not its length")
        if self.key and not hmac.compare_digest(entry["mac"], mac(self.key, label, self.id, content)):
            fail(f"{self.directory}/{name}: was changed by somebody without the key")
        return content

    def sections(self):
        magic, count, _ = struct.unpack_from("<8sII", self.state)
        if magic != b"SVSTATE1" or count > MOST_SECTIONS:
            fail(f"{self.directory}/state.bin: is no state")
        at = 16
        for _ in range(count):
            kind, version, instance, _, length, _ = struct.unpack_from("<IIIIQQ", self.state, at)
            at += 32
            if length > len(self.state) - at:
                fail(f"{self.directory}/state.bin: ends within a section")
            yield kind, version, instance, self.state[at:at + length]
            at += (length + 7) // 8 * 8

    def extract(self, out):
        """Puts this snapshot's own pages to their places."""
        raw = self.manifest["memory"]["encoding"] == "raw"
        with opened(self.directory, "memory.raw" if raw else "memory.zst") as memory:
            for extent, (offset, stored, count, _, _, data, zeros, sum_) in enumerate(self.extents):
                begin, pages = extent * EXTENT, pages_of(data)
                if len(pages) != count:
                    fail(f"{self.directory}: extent {extent} has not the pages it says")
                if begin + PAGE * max(pages + pages_of(zeros), default=0) >= self.span:
                    fail(f"{self.directory}: extent {extent} has pages behind the memory's end")
                if raw:
                    content = b"".join(os.pread(memory.fileno(), PAGE, begin + page * PAGE) for page in pages)
                elif pages:
                    number(stored, 1, MOST_FRAME, f"{self.directory}: frame of extent {extent}")
                    content = decompressed(os.pread(memory.fileno(), stored, offset), count * PAGE)
                else:
                    content = b""
                if len(content) != count * PAGE:
                    fail(f"{self.directory}: extent {extent} has not its length")
                if self.key and pages:
                    found = mac(self.key, "stopvisor.extent", self.id, struct.pack("<Q", extent), data, zeros, content)
                    if not hmac.compare_digest(found, sum_.hex()):
                        fail(f"{self.directory}: extent {extent} was changed by somebody without the key")
                for i, page in enumerate(pages):
                    os.pwrite(out, content[i * PAGE:(i + 1) * PAGE], begin + page * PAGE)
                for page in pages_of(zeros):
                    os.pwrite(out, bytes(PAGE), begin + page * PAGE)


def chain_of(directory, key):
    """The snapshot and its parents, the newest first."""
    chain = [Snapshot(directory, key)]
    while "parent" in chain[-1].manifest:
        child, link = chain[-1], chain[-1].manifest["parent"]
        parent = Snapshot(os.path.join(child.directory, link["place"]), key)
        if (parent.manifest["id"], parent.digest) != (link["id"], link["digest"]):
            fail(f"{parent.directory}: is not the parent of {child.directory}")
        chain.append(parent)
        if len(chain) > MOST_MEMBERS:
            fail(f"{directory}: has too many parents")
    return chain


def main():
    parser = argparse.ArgumentParser(description="Lists and extracts snapshots.")
    parser.add_argument("verb", choices=["list", "extract"])
    parser.add_argument("directory")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--key")
    parser.add_argument("--disk", type=int, metavar="N")
    args = parser.parse_args()
    key = None
    if args.key:
        with open(args.key, "rb") as file:
            key = file.read(4096)
        key = key if len(key) == 32 else bytes.fromhex(key.decode())
    chain = chain_of(args.directory, key)
    if args.verb == "list":
        newest = chain[0]
        print(json.dumps({
            "manifest": newest.manifest, "digest": newest.digest,
            "chain": [member.directory for member in chain],
            "sections": [{"kind": kind, "version": version, "instance": instance, "bytes": len(payload)}
                         for kind, version, instance, payload in newest.sections()]}, indent=2))
        return
    if not args.out:
        parser.error("extract needs OUT")
    regions = chain[0].manifest["memory"]["regions"]
    out = os.open(args.out, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if args.disk is not None:
        chain[0].extract_disk(args.disk, out)
        return
    os.ftruncate(out, regions[-1]["offset"] + regions[-1]["bytes"])
    for member in reversed(chain):
        member.extract(out)
    os.close(out)


if __name__ == "__main__":
    try:
        main()
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError, struct.error) as error:
        fail(f"is no snapshot: {error!r}")  # a field that is missing, or of another sort
    except OSError as error:
        fail(error)
