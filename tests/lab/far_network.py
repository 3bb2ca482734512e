# SPDX-License-Identifier: Apache-2.0
"""A guest's tap in a network namespace of its own in the outer machine: what the guest sends has nowhere else to go."""

import os
import shlex

from outer import say

PEER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "net_peer.py")
NEAR, FAR = "10.0.0.2", "10.0.0.1"  # the guest's address, and that of its peer


class Peer:
    """A network namespace that is there already, and programs in it."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name

    def inside(self, command):
        """That command, in the namespace."""
        return f"ip netns exec {self.name} {command}"

    def peer(self, *words):
        """Starts net_peer.py there. Returns its Job."""
        return self.lab.start(self.inside("python3 " + " ".join(shlex.quote(str(word)) for word in (PEER, *words))))


class FarNetwork(Peer):
    def __init__(self, lab, tap="tap0", name="far"):
        super().__init__(lab, name)
        self.tap = tap
        lab.must(f"ip netns add {name} && ip tuntap add dev {tap} mode tap")

    def take(self):
        """Moves the tap there, once somebody has its other end, and gives it an address."""
        self.lab.must(f"ip link set {self.tap} netns {self.name} && "
                      f"{self.inside(f'ip addr add {FAR}/24 dev {self.tap}')} && "
                      f"{self.inside(f'ip link set {self.tap} up')}")

    def counts(self):
        """(bytes, frames) that the guest has sent, (bytes, frames) that it was sent."""
        folder = f"/sys/class/net/{self.tap}/statistics"
        names = ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")
        text = self.lab.must(self.inside("cat " + " ".join(f"{folder}/{name}" for name in names)))
        numbers = [int(word) for word in text.split()]
        return tuple(numbers[:2]), tuple(numbers[2:])


def programs(options):
    """What the guest needs for its side: net_stream."""
    return [("bin/net_stream", os.path.join(options.programs, "lab_net"))]


def said_by(job, limit_s):
    """The last line of a peer that has ended."""
    done = job.wait(limit_s)
    line = (done.output.strip().splitlines() or [""])[-1]
    return line if done.status == 0 else f"exit status {done.status}: {done.output[-500:]}"


def configure(guest):
    """Gives the guest its address."""
    status, said = guest.shell(f"ip addr add {NEAR}/24 dev eth0 && ip link set eth0 up")
    if status != 0:
        say(said)
    return status == 0
