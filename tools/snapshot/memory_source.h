// SPDX-License-Identifier: Apache-2.0
// Where the memory of a new snapshot comes from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <vector>

#include "tools/snapshot/manifest.h"
#include "vmm/error.h"

namespace stopvisor::snapshot {

// One extent of memory.
struct ExtentBytes {
  const std::byte* bytes = nullptr; // page 0 of the extent; pages of no region are not looked at
  PageSet own;                      // which of its pages the new snapshot is to hold; the others are the parent's
};

// CONTEXT: several threads at once.
class MemorySource {
public:
  virtual ~MemorySource() = default;
  // By address, with their offsets (lay_out()).
  [[nodiscard]] virtual const std::vector<Region>& regions() const = 0;
  // `buffer` has kExtentBytes, for sources that have no memory of their own to point at.
  [[nodiscard]] virtual std::expected<ExtentBytes, vmm::Error> extent(uint64_t number,
                                                                      std::span<std::byte> buffer) = 0;
};

// A region of a VM's memory as it is mapped here. The bytes must not change while they are written: the VM is held,
// or this is a copy of it.
struct MappedRegion {
  uint64_t gpa = 0;
  uint64_t bytes = 0;
  const std::byte* host = nullptr;
  std::vector<uint64_t> dirty; // of an incremental snapshot: page n is bit n % 64 of word n / 64 (as KVM has it)
};

// RETURNS: a source; `incremental` where the `dirty` of the regions count. Regions are by address; a bitmap that is
// shorter than its region says nothing of the rest, which is then taken for dirty.
[[nodiscard]] std::unique_ptr<MemorySource> source_of(std::vector<MappedRegion> regions, bool incremental);

} // namespace stopvisor::snapshot
