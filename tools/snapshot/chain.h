// SPDX-License-Identifier: Apache-2.0
// A snapshot and all it stands on, read as one memory.
#pragma once

#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tools/snapshot/memory_source.h"
#include "tools/snapshot/reader.h"

namespace stopvisor::snapshot {

// CONTEXT: any thread after open(); several may read.
class Chain {
public:
  // Opens `directory` and its parents, each where its child says it is, and checks that they belong together.
  // RETURNS: as Snapshot::open(), naming the member; kRefused where a parent is not the one that its child names,
  // has other memory, or there are too many.
  [[nodiscard]] static std::expected<Chain, vmm::Error> open(const std::string& directory,
                                                             const OpenOptions& options);
  // The same of a newest one that was described. CONTEXT: as Snapshot::open_contents().
  [[nodiscard]] static std::expected<Chain, vmm::Error> open(Snapshot newest, const OpenOptions& options);
  // The same with the members given: the newest first, the full one last.
  [[nodiscard]] static std::expected<Chain, vmm::Error> open(const std::vector<std::string>& directories,
                                                             const OpenOptions& options);

  [[nodiscard]] const std::vector<Snapshot>& members() const noexcept { return members_; } // the newest first
  [[nodiscard]] const Snapshot& newest() const noexcept { return members_.front(); }
  [[nodiscard]] const std::vector<Region>& regions() const noexcept { return newest().manifest().regions; }

  // One extent of the guest's memory, every page checked where it is now. `extent` has kExtentBytes; of pages that
  // are of no region nothing is said. `stale`: pages of it that may be anything now; the others are zeros, and are
  // not touched where they are to be.
  [[nodiscard]] std::expected<void, vmm::Error> read_extent(uint64_t number, std::span<std::byte> extent,
                                                            PageSet stale = ~PageSet{}) const;

  // Copies all memory, checked. `to` has a piece of memory for each region, by their order, all of it zeros: pages
  // of zeros are not touched, and cost nothing.
  [[nodiscard]] std::expected<void, vmm::Error> read_memory(std::span<const std::span<std::byte>> to,
                                                            const Work& how, Progress* progress = nullptr) const;
  // Checks everything there is, of every member.
  [[nodiscard]] std::expected<void, vmm::Error> verify(const Work& how, Progress* progress = nullptr) const;

  // This memory as that of a new snapshot. The chain must outlive the source.
  [[nodiscard]] std::unique_ptr<MemorySource> source() const;

private:
  Chain() = default;
  [[nodiscard]] std::expected<void, vmm::Error> add(const std::string& directory, const OpenOptions& options);
  [[nodiscard]] std::expected<void, vmm::Error> add_parents(const OpenOptions& options);

  std::vector<Snapshot> members_;
};

} // namespace stopvisor::snapshot
