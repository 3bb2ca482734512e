// SPDX-License-Identifier: Apache-2.0
// Writes the memory file of a snapshot, and makes its index.
#pragma once

#include <expected>
#include <vector>

#include "tools/snapshot/digest.h"
#include "tools/snapshot/manifest.h"
#include "tools/snapshot/memory_source.h"
#include "tools/snapshot/parallel.h"
#include "tools/snapshot/publication.h"

namespace stopvisor::snapshot {

struct MemoryOptions {
  Encoding encoding = Encoding::kRaw;
  int level = 1; // zstd's
  const Key* key = nullptr;
  Progress* progress = nullptr;
};

// Writes and syncs the memory file of what `publication` makes. Fills what the manifest says of memory; its id is
// there already. CONTEXT: blocks; uses the threads of `how`. RETURNS: the index; kFailed where the file system
// refuses or it was cancelled; errors of the source.
[[nodiscard]] std::expected<std::vector<Extent>, vmm::Error> write_memory(Publication& publication,
                                                                          MemorySource& source, const Work& how,
                                                                          const MemoryOptions& options,
                                                                          Manifest& manifest);

// Whether a page has no bit set.
[[nodiscard]] bool is_zero_page(const std::byte* page) noexcept;

} // namespace stopvisor::snapshot
