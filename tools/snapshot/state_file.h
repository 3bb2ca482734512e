// SPDX-License-Identifier: Apache-2.0
// state.bin and extents.idx: the two binary files that are read whole.
#pragma once

#include <expected>
#include <string_view>
#include <vector>

#include "tools/snapshot/digest.h"
#include "tools/snapshot/manifest.h"
#include "vmm/error.h"
#include "vmm/state/section.h"

namespace stopvisor::snapshot {

using Sections = std::vector<vmm::StateSection>;

// CONTEXT, of all: any thread; do not block. Those that read RETURN kRefused for the first thing that is wrong.

// RETURNS: kFailed where there are too many sections, they are too large, or two are of one kind and instance.
[[nodiscard]] std::expected<std::vector<std::byte>, vmm::Error>
write_state(std::string_view operation, std::string_view object, const Sections& sections);
[[nodiscard]] std::expected<Sections, vmm::Error> read_state(std::string_view operation, std::string_view object,
                                                             ByteSpan bytes);

[[nodiscard]] std::vector<std::byte> write_index(const std::vector<Extent>& extents);
// Checks each entry against what `manifest` says of the memory.
[[nodiscard]] std::expected<std::vector<Extent>, vmm::Error>
read_index(std::string_view operation, std::string_view object, ByteSpan bytes, const Manifest& manifest);

} // namespace stopvisor::snapshot
