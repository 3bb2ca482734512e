# SPDX-License-Identifier: Apache-2.0
"""A /dev/kvm for a host that has none: commands run in the lab's outer machine, which sees the host's files.

As a program: its exit status is 0 where the host's own /dev/kvm can be used.
"""

import fcntl
import os
import shlex
import shutil
import sys
import tempfile

from console import Missed
from images import Images
from outer import OuterMachine

KVM_GET_API_VERSION, KVM_API_VERSION = 0xAE00, 12  # Linux, Documentation/virt/kvm/api.rst, 4.1


def kvm_usable():
    """Whether this host's own /dev/kvm can be used. STOPVISOR_NO_KVM=1 says no, to try what is done without."""
    if os.environ.get("STOPVISOR_NO_KVM"):
        return False
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(device, KVM_GET_API_VERSION, 0) == KVM_API_VERSION
    except OSError:
        return False  # something else has that name
    finally:
        os.close(device)


class KvmElsewhere:
    """One outer machine for many commands, started with the first of them. CONTEXT: one thread."""

    def __init__(self, root):
        cache = os.environ.get("STOPVISOR_LAB_CACHE", os.path.join(root, "build", "lab-cache"))
        self._images = Images(os.path.realpath(cache))
        self._machine = self._work = None

    def run(self, command, limit_s, env, cwd):
        """Returns a command's exit status (None: out of time) and its output. Raises Unavailable."""
        if self._machine is None:
            self._work = tempfile.mkdtemp(prefix="stopvisor-lab-")
            self._machine = OuterMachine(self._images, self._work, cpus=os.cpu_count() or 2)
            self._machine.__enter__()
        words = [f"{name}={value}" for name, value in env.items()] + list(command)
        line = f"cd {shlex.quote(cwd)}; exec env " + " ".join(map(shlex.quote, words))
        job = self._machine.start(line)
        try:
            done = job.wait(limit_s)
        except Missed:
            output = job.output()
            self.close()  # whatever hangs there goes with the machine
            return None, output.encode()
        return done.status, done.output.encode()

    def close(self):
        if self._machine is not None:
            self._machine.__exit__(None, None, None)
            self._machine = None
            shutil.rmtree(self._work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(0 if kvm_usable() else 1)
