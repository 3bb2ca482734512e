# SPDX-License-Identifier: Apache-2.0
"""Messages of the migration protocol (docs/reference/migration-protocol.md), to be read and to be made up."""

import ctypes
import struct

HEADER = struct.Struct("<4sHHQIIQ")  # magic, kind, flags, number, length, 0, checksum
MAGIC = b"SVMG"
HELLO, WELCOME, REFUSAL, MACHINE, ACCEPTED, PAGES, ROUND_END, ROUND_DONE, STATE, WORD, ALIVE = range(1, 12)
PREPARE, COMMIT, ABANDON, PREPARED, RUNNING, ABANDONED = range(6)
FEATURES = 0b111
TLS = 1 << 17


def _load_xxhash():
    try:
        library = ctypes.CDLL("libxxhash.so.0")
    except OSError:
        return None
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return library


XXHASH = _load_xxhash()  # None: nothing that is whole can be made up here


def frame(kind, payload=b"", number=0, flags=0, length=None, checksum=None):
    """A whole one, but for what is said of it."""
    length = len(payload) if length is None else length
    plain = HEADER.pack(MAGIC, kind, flags, number, length, 0, 0) + payload
    if checksum is None:
        checksum = XXHASH.XXH3_64bits(plain, len(plain))
    return plain[:24] + struct.pack("<Q", checksum) + payload


def text(value):
    return struct.pack("<H", len(value)) + value


def hello(least=1, most=1, features=FEATURES, required=0, vm=b"stranger", role=0, number=0):
    return frame(HELLO, struct.pack("<HHQQ16sBH", least, most, features, required, b"0123456789abcdef", role, number) + text(vm) +
                 text(b"a test"))


def welcome(version=1, features=FEATURES):
    return frame(WELCOME, struct.pack("<HQ", version, features) + text(b"a test"))


def refusal(status, operation, thing, reason):
    return frame(REFUSAL, bytes([status]) + text(operation) + text(thing) + text(reason))


def read_exactly(link, length):
    """None where the link ends before."""
    data = bytearray()
    while len(data) < length:
        more = link.recv(min(length - len(data), 1 << 20))
        if not more:
            return None
        data += more
    return bytes(data)


def read_frame(link):
    """Kind and payload of the next one, signs of life left out; None at the end of the link."""
    while (head := read_exactly(link, HEADER.size)) is not None:
        magic, kind, _, _, length, _, _ = HEADER.unpack(head)
        if magic != MAGIC:
            raise ValueError(f"no message of ours: {head}")
        payload = read_exactly(link, length)
        if kind != ALIVE or payload is None:
            return None if payload is None else (kind, payload)
    return None
