# SPDX-License-Identifier: Apache-2.0
"""Gets Debian packages and unpacks them, without root: apt-get downloads (and checks) them, dpkg-deb unpacks them.

Nothing is installed: a kernel package's scripts would put that kernel on the host. What was fetched stays in the
cache folder under the file name apt gave it (package, version, architecture), so a second run asks nobody.
"""

import os
import re
import shutil
import subprocess
import tempfile

from skip import Unavailable


def _run(command, cwd=None):
    try:
        return subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=300, check=False, text=True)
    except FileNotFoundError:
        raise Unavailable(f"the lab gets its packages with {command[0]}, which this host does not have") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"no answer within 300 s: {' '.join(command)}") from None


class Packages:
    """A folder of unpacked Debian packages."""

    def __init__(self, cache):
        self.cache = cache
        self.apt_options = []

    def tree(self, package):
        """The folder a package is unpacked in: fetched where it is not there yet. Raises Unavailable."""
        unpacked = os.path.join(self.cache, "packages", package)
        if not os.path.isdir(unpacked):
            archive = self._fetch(package)
            os.makedirs(os.path.dirname(unpacked), exist_ok=True)
            part = tempfile.mkdtemp(dir=os.path.dirname(unpacked))
            done = _run(["dpkg-deb", "-x", archive, part])
            if done.returncode != 0:
                raise Unavailable(f"unpack {archive}: {done.stdout.strip()[-300:]}")
            os.chmod(part, 0o755)
            try:
                os.rename(part, unpacked)  # at once: who looks meanwhile sees all of it or nothing
            except OSError:
                shutil.rmtree(part)  # another run was first
        return unpacked

    def behind(self, metapackage):
        """The package a metapackage stands for today: `linux-image-amd64` -> `linux-image-6.1.0-NN-amd64`."""
        named = os.path.join(self.cache, "packages", metapackage + ".is")
        if not os.path.exists(named):
            version = re.search(r"^Depends: (linux-image-[^ ,]+)", self._show(metapackage), re.M)
            if not version:
                raise Unavailable(f"the package {metapackage} names no kernel")
            os.makedirs(os.path.dirname(named), exist_ok=True)
            with open(named, "w", encoding="utf-8") as out:
                out.write(version[1])
        with open(named, encoding="utf-8") as found:
            return found.read()

    def _show(self, package):
        for _ in range(2):
            done = _run(["apt-cache", *self.apt_options, "show", "--no-all-versions", package])
            if done.returncode == 0 and done.stdout.startswith("Package:"):
                return done.stdout
            self._own_lists()
        raise Unavailable(f"apt knows no package {package}: {done.stdout.strip()[-300:]}")

    def _fetch(self, package):
        folder = os.path.join(self.cache, "debs")
        os.makedirs(folder, exist_ok=True)
        for _ in range(2):
            done = _run(["apt-get", *self.apt_options, "download", package], cwd=folder)
            found = [name for name in os.listdir(folder) if name.startswith(package + "_") and name.endswith(".deb")]
            if done.returncode == 0 and found:
                newest = max((os.path.join(folder, name) for name in found), key=os.path.getmtime)
                return newest
            self._own_lists()
        raise Unavailable(f"download {package}: {done.stdout.strip()[-300:]}")

    def _own_lists(self):
        """Lists of our own, where the host's are missing or too old for what the mirror has; needs no root."""
        if self.apt_options:
            return
        state = os.path.join(self.cache, "apt")
        os.makedirs(os.path.join(state, "lists", "partial"), exist_ok=True)
        os.makedirs(os.path.join(state, "archives", "partial"), exist_ok=True)
        self.apt_options = ["-o", f"Dir::State::Lists={state}/lists", "-o", f"Dir::Cache={state}"]
        _run(["apt-get", *self.apt_options, "update"])
