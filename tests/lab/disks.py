# SPDX-License-Identifier: Apache-2.0
"""The guests' disk with real programs of Debian packages installed on the host, each with its libraries."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile

from skip import Unavailable

PROGRAMS = {"fio": "fio", "sqlite3": "sqlite3", "stress-ng": "stress-ng"}  # program, package
MEGABYTE = 1 << 20


def _libraries(program):
    done = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True)
    return re.findall(r"(/\S+) \(0x", done.stdout)


def _files():
    """(path in the guest, file of the host) of all programs and their libraries."""
    found = {}
    for program, package in PROGRAMS.items():
        path = shutil.which(program)
        if path is None:
            raise Unavailable(f"the guests' disk needs {program} (Debian: {package}), which this host does not have")
        found["usr/bin/" + program] = path
        for library in _libraries(path):
            found[library.lstrip("/")] = os.path.realpath(library)
    return sorted(found.items())


def program_disk(cache):
    """A read-only ext4 image with the programs. It is made once for each version of what is in it."""
    mkfs = shutil.which("mkfs.ext4") or "/sbin/mkfs.ext4"
    if not os.path.exists(mkfs):
        raise Unavailable("the guests' disk needs mkfs.ext4 (Debian: e2fsprogs), which this host does not have")
    files = _files()
    key = hashlib.sha256(repr([(path, file, os.path.getsize(file), os.path.getmtime(file)) for path, file in files])
                         .encode()).hexdigest()[:16]
    folder = os.path.join(cache, "images")
    image = os.path.join(folder, f"programs-{key}.ext4")
    if not os.path.exists(image):
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            tree = os.path.join(part, "tree")
            for path, file in files:
                os.makedirs(os.path.join(tree, os.path.dirname(path)), exist_ok=True)
                shutil.copy(file, os.path.join(tree, path))
            size_mb = sum(os.path.getsize(file) for _, file in files) * 5 // 4 // MEGABYTE + 16
            made = os.path.join(part, "image")
            done = subprocess.run([mkfs, "-q", "-O", "^has_journal", "-m", "0", "-d", tree, made, f"{size_mb}M"],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, check=False)
            if done.returncode != 0:
                raise Unavailable(f"make the guests' disk: {done.stdout.strip()[-300:]}")
            os.rename(made, image)
    return image
