# SPDX-License-Identifier: Apache-2.0
"""Writes an initramfs: a cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/
buffer-format.rst), from a list of entries. No root and no device nodes are needed: devtmpfs makes those."""

import stat

DIRECTORY = stat.S_IFDIR | 0o755
PROGRAM = stat.S_IFREG | 0o755
FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777


def _entry(number, name, mode, data):
    path = name.encode() + b"\0"
    fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0]
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


class Archive:
    """Collects files by path; a folder is made before what is in it. The same entries give the same bytes."""

    def __init__(self):
        self.entries = {}

    def add(self, path, data, mode=FILE):
        path = path.strip("/")
        folder = path.rpartition("/")[0]
        if folder and folder not in self.entries:
            self.add(folder, b"", DIRECTORY)
        self.entries[path] = (mode, data)

    def folder(self, *paths):
        for path in paths:
            self.add(path, b"", DIRECTORY)

    def program(self, path, data):
        self.add(path, data, PROGRAM)

    def link(self, path, target):
        self.add(path, target.encode(), LINK)

    def bytes(self):
        body = b"".join(_entry(number, name, mode, data)
                        for number, (name, (mode, data)) in enumerate(self.entries.items(), 1))
        body += _entry(0, "TRAILER!!!", 0, b"")
        return body + bytes(-len(body) % 512)
