#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists the frames of a recorded migration, one direction of one link, by docs/reference/migration-protocol.md.

migration_dump.py [FILE]      stdin where there is none

Each frame is checked as a receiver would check it, but for what a zstd frame holds. XXH3 is not in Python's library:
without the module `xxhash` (Debian: python3-xxhash) checksums are not checked, and that is said. The exit status is 0
where all frames are whole and right. A recording holds the guest's memory: this lists where pages are, not their bytes.
"""
import struct
import sys

try:
    import xxhash
except ImportError:
    xxhash = None

PAGE, HEADER = 4096, 32
MOST_LINKS, MOST_REGIONS, MOST_DISKS, MOST_SECTIONS = 16, 64, 64, 65536
MOST_RUNS, MOST_DATA_PAGES, MOST_ADDRESS = 1024, 256, 1 << 52
NAME, LONG = 255, 4095
KIB, MIB = 1 << 10, 1 << 20
ZSTD = 1
ROLES = ("control", "stream", "again")
RUNS = ("data", "zeros", "copies")
WORDS = (None, "commit", "abandon", "prepared", "running", "abandoned")


class Wrong(Exception):
    pass


def check(good, what):
    if not good:
        raise Wrong(what)


class Reader:
    """A payload, from its beginning: more than there is, and anything left over, is wrong."""

    def __init__(self, payload):
        self.payload, self.at = payload, 0

    def take(self, count):
        check(count <= len(self.payload) - self.at, "is too short")
        self.at += count
        return self.payload[self.at - count:self.at]

    def numbers(self, layout):
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def number(self, layout):
        return self.numbers(layout)[0]

    def text(self, most):
        size = self.number("H")
        check(size <= most, f"has a text of {size} bytes, at most {most}")
        text = self.take(size).decode("utf-8", errors="replace")
        return "".join(c if c.isprintable() else "?" for c in text)

    def finish(self):
        check(self.at == len(self.payload), f"has {len(self.payload) - self.at} bytes too many")


def sections(reader):
    count = reader.number("I")
    check(count <= MOST_SECTIONS, f"has {count} sections")
    seen, total = set(), 0
    for _ in range(count):
        kind, version, instance, length = reader.numbers("IIII")
        check(version > 0 and (kind, instance) not in seen, "has a section twice, or one without a version")
        seen.add((kind, instance))
        reader.take(length)
        total += length
    return f"{count} sections of {total} bytes"


def hello(reader, _flags):
    least, most, features, required = reader.numbers("HHQQ")
    id_, (role, number) = reader.take(16), reader.numbers("BH")
    name, program = reader.text(NAME), reader.text(NAME)
    check(0 < least <= most, "has no range of versions")
    check(required & ~features == 0, "requires what it does not offer")
    check(any(id_), "has no id")
    check(role < len(ROLES), f"has role {role}")
    check((0 < number < MOST_LINKS) if role == 1 else number == 0, f"has number {number}")
    check(name, "has no name of a VM")
    return (f"versions {least} to {most}, features {features:#x}, required {required:#x}, {ROLES[role]} {number}, "
            f"VM {name}, {program}")  # the id is a secret


def welcome(reader, _flags):
    version, features = reader.numbers("HQ")
    check(version > 0, "has no version")
    return f"version {version}, features {features:#x}, {reader.text(NAME)}"


def refusal(reader, _flags):
    status = reader.number("B")
    texts = [reader.text(NAME), reader.text(LONG), reader.text(LONG)]
    return f"status {status}: " + ": ".join(text for text in texts if text)


def machine(reader, _flags):
    links, cpus, count = reader.numbers("HII")
    check(0 < links <= MOST_LINKS and cpus > 0 and 0 < count <= MOST_REGIONS, "has counts that cannot be")
    end, regions = None, []
    for _ in range(count):
        gpa, size = reader.numbers("QQ")
        check(gpa % PAGE == 0 and size % PAGE == 0 and size > 0 and gpa + size <= MOST_ADDRESS, "has a region that is none")
        check(end is None or gpa > end, "has regions that touch, or are not in order")
        end = gpa + size
        regions.append(f"{gpa:#x}+{size:#x}")
    count = reader.number("I")
    check(count <= MOST_DISKS, f"has {count} disks")
    disks = []
    for _ in range(count):
        size, read_only = reader.numbers("QB")
        check(read_only <= 1, "has a flag that is none")
        disks.append(f"{reader.text(LONG)} ({size} bytes{', read-only' if read_only else ''})")
    return f"{links} links, {cpus} vCPUs, memory {', '.join(regions)}, disks {', '.join(disks) or 'none'}, {sections(reader)}"


def pages(reader, flags):
    runs, data_pages = reader.numbers("II")
    check(0 < runs <= MOST_RUNS and data_pages <= MOST_DATA_PAGES, "has counts that cannot be")
    counts, taken = [0] * len(RUNS), []
    for _ in range(runs):
        gpa, count, kind, zero, source = reader.numbers("QIBBH")
        check(gpa % PAGE == 0 and count > 0 and gpa + count * PAGE <= MOST_ADDRESS, f"has a run at {gpa:#x} that is none")
        check(kind < len(RUNS) and zero == 0, f"has a run of kind {kind}")
        check(source < data_pages if kind == 2 else source == 0, "has a copy of nothing")
        counts[kind] += count
        taken.append((gpa, gpa + count * PAGE))
    taken.sort()
    check(all(one[1] <= other[0] for one, other in zip(taken, taken[1:])), "has a page twice")
    check(counts[0] == data_pages, "has runs of another number of data pages")
    size = len(reader.payload) - reader.at
    if flags & ZSTD:
        check(data_pages > 0 and reader.payload[reader.at:reader.at + 4] == b"\x28\xb5\x2f\xfd", "has no zstd frame")
    else:
        check(size == data_pages * PAGE, f"has {size} bytes of data")
    reader.take(size)
    told = ", ".join(f"{count} {name}" for count, name in zip(counts, RUNS) if count)
    return f"{told} in {runs} runs from {taken[0][0]:#x}, {size} bytes{' compressed' if flags & ZSTD else ''}"


def mark(reader, _flags):
    number, count = reader.numbers("IQ")
    return f"round {number}, {count} pages"


def state(reader, _flags):
    held, count = reader.numbers("BI")
    check(held <= 1 and 0 < count <= MOST_LINKS, "has a flag or a count that cannot be")
    links = []
    for number in range(count):
        told, frames, digest = reader.numbers("HQQ")
        check(told == number, "leaves out a link")
        links.append(f"{number}: {frames} frames, digest {digest:016x}")
    return f"{'held, ' if held else ''}links {'; '.join(links)}, {sections(reader)}"


def word(reader, _flags):
    number = reader.number("B")
    check(0 < number < len(WORDS), f"is word {number}")
    return WORDS[number]


def nothing(_reader, _flags):
    return ""


# By kind: name, most bytes, how to read it, flags it may have.
KINDS = {
    1: ("hello", 64 * KIB, hello, 0), 2: ("welcome", 64 * KIB, welcome, 0), 3: ("refusal", 64 * KIB, refusal, 0),
    4: ("machine", 4 * MIB, machine, 0), 5: ("accepted", 0, nothing, 0), 6: ("pages", 4 * MIB, pages, ZSTD),
    7: ("round end", 64 * KIB, mark, 0), 8: ("round done", 64 * KIB, mark, 0), 9: ("state", 64 * MIB, state, 0),
    10: ("word", 64 * KIB, word, 0), 11: ("alive", 0, nothing, 0),
}


def read_frame(stream, number, known):
    """Returns its kind, its checksum, and what it says; nothing at the end of the stream."""
    header = stream.read(HEADER)
    if not header:
        return None
    check(len(header) == HEADER, "ends in its header")
    magic, kind, flags, told, length, zero, checksum = struct.unpack("<4sHHQIIQ", header)
    check(magic == b"SVMG", "does not begin as one")
    check(kind in KINDS, f"is of kind {kind}")
    name, most, reader, may = KINDS[kind]
    check(known or kind in (1, 2, 3, 11), f"is {name}, and nobody has said hello")
    check(told == number, f"says that it is number {told}")
    check(flags & ~may == 0 and zero == 0, "has flags that there are not")
    check(length <= most, f"is too long: {length} bytes")
    payload = stream.read(length)
    check(len(payload) == length, "ends in its payload")
    if xxhash:
        summed = xxhash.xxh3_64_intdigest(header[:24] + bytes(8) + payload)
        check(summed == checksum, "is not what its checksum says")
    content = Reader(payload)
    says = reader(content, flags)
    content.finish()
    return kind, checksum, f"{name:<10} {length:>9}  {says}".rstrip()


def dump(stream):
    frames, digest, number, known = 0, 0, 0, False
    while True:
        try:
            frame = read_frame(stream, number, known)
        except Wrong as wrong:
            print(f"migration_dump: frame {number} {wrong}", file=sys.stderr)
            return 1
        if frame is None:
            break
        kind, checksum, says = frame
        print(f"{number:>6}  {says}")
        number += 1
        if kind != 11:
            known = True
            frames += 1
            if xxhash:
                digest = xxhash.xxh3_64_intdigest(struct.pack("<QQ", digest, checksum))
    print(f"tally: {frames} frames" + (f", digest {digest:016x}" if xxhash else ""))
    return 0


def main(words):
    if len(words) > 1 or (words and words[0].startswith("-")):
        sys.exit(__doc__)
    if not xxhash:
        print("migration_dump: checksums skipped: Python has no module xxhash (python3-xxhash)", file=sys.stderr)
    if words:
        with open(words[0], "rb") as stream:
            return dump(stream)
    return dump(sys.stdin.buffer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
