# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/tutorial/first-patch.md, as they stand there, on Debian's kernel."""

import json
import os
import re

from guest import TIMEOUT_S

HERE = os.path.dirname(os.path.abspath(__file__))
TUTORIAL = os.path.join(HERE, "..", "..", "..", "docs", "tutorial", "first-patch.md")
BLOCK = re.compile(r"^```(json)?\n(.*?)^```$", re.M | re.S)
STATUS = re.compile(r"^status (\d+)")
FOLDER = "/tmp/first-patch"


def run(lab, options, checks):
    tools = prepared(lab, options)
    with open(TUTORIAL, encoding="utf-8") as file:
        blocks = BLOCK.findall(file.read())
    for language, text in blocks:
        if language:
            save(lab, tools, json.loads(text))
            continue
        for line in text.splitlines():
            follow(lab, checks, tools, line.replace("/boot/vmlinuz-$(uname -r)", options.images.kernel("cloud").image))
    checks.equal("the VM has ended", lab.must(f"{tools}; stopvisor ls"), "stopvisor: no VM is running\n")


def prepared(lab, options):
    """What the tutorial takes for granted. Returns the shell's words that set it up."""
    packages = options.images.packages
    lab.must(f"mkdir -p {FOLDER}; ln -sf {packages.tree('busybox-static')}/bin/busybox /bin/busybox")
    return (f"cd {FOLDER}; export STOPVISOR_TIMEOUT={TIMEOUT_S}s; PATH={os.path.dirname(options.stopvisor)}:{packages.tree('cpio')}/bin:$PATH")


def save(lab, tools, patch):
    """A patch of the tutorial's, in a file of its name; with the bytes of this kernel, where the reader is told to look
    at theirs."""
    for write in patch["writes"]:
        if write["kind"] == "code":
            size = len(write["expect"].split())
            write["expect"] = lab.must(f"{tools}; stopvisor peek deb {write['at']} {size} --raw | od -An -tx1").strip()
    with open(os.path.join(lab.work, "patch.json"), "w", encoding="utf-8") as out:
        json.dump(patch, out)
    lab.must(f"cat {lab.work}/patch.json >{FOLDER}/{patch['name']}.json")


def follow(lab, checks, tools, line):
    command, _, remark = line.partition("  # ")
    if command.strip().startswith("stopvisor console"):
        said = remark.partition(";")[0]
        seen = lab.run(f"{tools}; timeout 300 {command.strip()} --no-input | grep -m 1 '{said}'", 330)
        checks.that(f"the console says: {said}", seen.status == 0, seen.output)
        return
    wanted = int((STATUS.search(remark) or [0, 0])[1])
    done = lab.run(f"{tools}; {command}", 300)
    checks.that(line.strip()[:100], done.status == wanted, f"exit status {done.status}: {done.output[-1500:]}")
