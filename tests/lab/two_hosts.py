# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces of the outer machine that stand for two hosts, each with a tap behind a bridge. Both bridges lead
to that of a third namespace, where the guests' peer lives; a link of its own joins the two, for migrations to go over."""

from far_network import FAR, Peer

DELAY, LOSS = "2ms", "0.2%"  # of the lossy link, each way


class TwoHosts(Peer):
    HOSTS = ("host0", "host1")

    def __init__(self, lab):
        super().__init__(lab, "far")
        lab.must("ip netns add far && ip -n far link add lan type bridge && "
                 f"ip -n far addr add {FAR}/24 dev lan && ip -n far link set lan up")
        for number, host in enumerate(self.HOSTS):
            lab.must(" && ".join([
                f"ip netns add {host}", f"ip -n {host} link set lo up", f"ip -n {host} link add lan type bridge",
                f"ip -n {host} tuntap add dev {self.tap(number)} mode tap",
                f"ip link add wire netns {host} type veth peer name {host} netns far",
                f"ip -n {host} link set wire master lan", f"ip -n {host} link set {self.tap(number)} master lan",
                *(f"ip -n {host} link set {name} up" for name in ("lan", "wire", self.tap(number))),
                f"ip -n far link set {host} master lan", f"ip -n far link set {host} up"]))
        first, second = self.HOSTS
        lab.must(f"ip link add direct netns {first} type veth peer name direct netns {second}")
        for number, host in enumerate(self.HOSTS):
            lab.must(f"ip -n {host} addr add {self.address(number)}/24 dev direct && ip -n {host} link set direct up")

    @staticmethod
    def tap(number):
        """The guest's way out of that host: of another name on each."""
        return f"tap{number}"

    @staticmethod
    def address(number):
        """Of that host, for the other."""
        return f"10.0.1.{number + 1}"

    def words(self, number):
        """What a command begins with that is to run on that host."""
        return ["ip", "netns", "exec", self.HOSTS[number]]

    def spoil(self):
        """Gives the link between the hosts delay and loss. Returns nothing, or why that cannot be."""
        for host in self.HOSTS:
            done = self.lab.run(f"tc -n {host} qdisc replace dev direct root netem delay {DELAY} loss {LOSS}")
            if done.status != 0:
                return done.output.strip() or f"tc: exit status {done.status}"
        return ""

    def mend(self):
        for host in self.HOSTS:
            self.lab.must(f"tc -n {host} qdisc del dev direct root")
