// SPDX-License-Identifier: Apache-2.0
// Makes other snapshots out of chains: merged, on another parent, without ancestors nobody needs.
#pragma once

#include <expected>
#include <string>
#include <vector>

#include "tools/snapshot/chain.h"
#include "tools/snapshot/writer.h"

namespace stopvisor::snapshot {

// How a chain is read, and the new snapshot written. The new one is sealed with `write.key`; its `parent` is set
// here.
struct EditOptions {
  OpenOptions open;
  CreateOptions write;
};

// All block, and leave everything as it was after an error. Every byte is checked as it is read. The new snapshots
// have ids of their own; VM, time, facts, state and machine are those of the old one. RETURNS, of all: errors of
// Chain::open() and create().

// Writes `to`: full, with the memory that `directory` has by its chain.
[[nodiscard]] std::expected<Created, vmm::Error> merge(const std::string& directory, const std::string& to,
                                                       const EditOptions& options);
// Writes `to`: incremental to `base`, any snapshot with the same regions; it has the pages that differ.
[[nodiscard]] std::expected<Created, vmm::Error> rebase(const std::string& directory, const std::string& base,
                                                        const std::string& to, const EditOptions& options);

struct Pruned {
  std::vector<std::string> removed;
  std::vector<std::string>
      kept; // ancestors that other snapshots in their folder stand on, or that hold other files
};

// Makes `directory` full, in its place, and removes the ancestors that no other snapshot beside them names as its
// parent. A snapshot that stands on `directory` itself would lose its parent: kRefused where there is one beside
// it. What is no file of a snapshot is never removed: kRefused where `directory` has such. By a link it is the
// snapshot that is meant, where it is. Killed at any time, `directory` is there, old or new.
[[nodiscard]] std::expected<Pruned, vmm::Error> prune(const std::string& directory, const EditOptions& options);

} // namespace stopvisor::snapshot
