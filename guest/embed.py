#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes C++ source that holds a file's bytes: embed.py INPUT OUTPUT.

A generated source, unlike .incbin, is rebuilt whenever the file changes and needs no linker of a kind."""
import sys

data = open(sys.argv[1], "rb").read()
rows = "\n".join("  " + "".join(f"{byte}," for byte in data[at : at + 32]) for at in range(0, len(data), 32))
open(sys.argv[2], "w").write(
    f"""// Generated from the probe guest's ELF by guest/embed.py.
#include "guest/probe_image.h"

namespace stopvisor::probe {{
namespace {{
alignas(64) constexpr unsigned char kImage[{len(data)}] = {{
{rows}
}};
}} // namespace

std::span<const std::byte> image() noexcept {{ return std::as_bytes(std::span(kImage)); }}

}} // namespace stopvisor::probe
"""
)
