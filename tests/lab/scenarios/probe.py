# SPDX-License-Identifier: Apache-2.0
"""The lab itself: its /dev/kvm is real, and our own probe guest runs there and powers off."""

from guest import Ours


def run(lab, options, checks):
    """CONTEXT: as each scenario: in an outer machine of its own."""
    modules = lab.must("cat /proc/modules")
    checks.that("the outer machine has kvm_amd", "kvm_amd " in modules, modules)
    measured = lab.run(["timeout", "300", options.stopvisor, "bench", "stop", "--cpus", "2", "--rounds", "20"], 330)
    checks.that("stops of our probe guest are measured", measured.status == 0,
                f"exit status {measured.status}: {measured.output}")
    guest = Ours(lab, options, "probe", ["--cpus", "2"])
    guest.console.expect(r"probe|stopvisor", 300)
    held = guest.command("pause")
    checks.that("a VM in the lab is held", held.status == 0, held.output)
    checks.that("and ended", guest.command("resume").status == 0)
    guest.kill()
    checks.equal("run ends with 0", guest.end().status, 0)
