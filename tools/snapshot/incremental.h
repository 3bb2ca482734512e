// SPDX-License-Identifier: Apache-2.0
// What an incremental snapshot stands on, and which pages it holds: those that are not as its parent has them.
//
// They are found by comparison. Nobody who writes to a guest's memory has to tell, and any parent is right that has
// memory of the same layout: an older snapshot, another VM's, the one this VM was restored from (ADR 23).
#pragma once

#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tools/snapshot/chain.h"
#include "tools/snapshot/writer.h"

namespace stopvisor::snapshot {

// `memory` with those pages for its own that are not as `parent` has them, each page of which is checked as it is
// read. Both must outlive the source. CONTEXT, of the source: that of `memory`.
[[nodiscard]] std::unique_ptr<MemorySource> difference(const Chain& parent, MemorySource& memory);

// A parent, from before the new snapshot's first byte until its last. CONTEXT: any thread; blocks on files.
class Base {
public:
  // Opens `directory` and all it stands on. `of` is whom the new snapshot's memory, of `regions`, belongs to; a
  // key, and what `operation` points at, must outlive the object. RETURNS: errors of Chain::open(); kRefused where
  // it has other memory, or the longest chain there can be.
  [[nodiscard]] static std::expected<Base, vmm::Error> open(std::string_view operation,
                                                            const std::string& directory, const Key* key,
                                                            std::string_view of,
                                                            const std::vector<Region>& regions);

  [[nodiscard]] const Chain& chain() const noexcept { return chain_; }
  [[nodiscard]] Parent link() const;
  // Whether all of it is still there: somebody may have pruned it meanwhile. RETURNS: what it says where not.
  [[nodiscard]] std::expected<void, vmm::Error> confirm() const;

private:
  Base(Chain chain, const OpenOptions& options, std::string directory)
      : chain_(std::move(chain)), options_(options), directory_(std::move(directory)) {}

  Chain chain_;
  OpenOptions options_;
  std::string directory_;
};

} // namespace stopvisor::snapshot
