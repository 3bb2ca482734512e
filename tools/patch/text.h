// SPDX-License-Identifier: Apache-2.0
// How bytes that differ are shown: from the first difference on, and no more of them than a line takes.
#pragma once

#include <span>
#include <string>

#include "tools/patch/manifest.h"

namespace stopvisor::patch {

// "expected 0f 1f, found e8 12", or "at +16 expected ..."; masked bytes are "??" where no bit of them counts.
[[nodiscard]] std::string difference(std::span<const std::byte> expected, std::span<const std::byte> mask,
                                     std::span<const std::byte> found);
// "originally 01, written 02, found 03".
[[nodiscard]] std::string three_ways(std::span<const std::byte> before, std::span<const std::byte> written,
                                     std::span<const std::byte> found);

} // namespace stopvisor::patch
