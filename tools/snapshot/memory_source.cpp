// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/memory_source.h"

#include <algorithm>
#include <utility>

namespace stopvisor::snapshot {
namespace {

class MappedSource : public MemorySource {
public:
  MappedSource(std::vector<MappedRegion> mapped, bool incremental)
      : mapped_(std::move(mapped)), incremental_(incremental) {
    for (const MappedRegion& region : mapped_)
      regions_.push_back({.gpa = region.gpa, .bytes = region.bytes});
    lay_out(regions_);
  }

  [[nodiscard]] const std::vector<Region>& regions() const override { return regions_; }

  // Regions begin at multiples of 2 MiB: an extent is of one region.
  [[nodiscard]] std::expected<ExtentBytes, vmm::Error> extent(uint64_t number,
                                                              std::span<std::byte> /*buffer*/) override {
    const uint64_t begin = number * kExtentBytes;
    for (size_t i = 0; i < regions_.size(); ++i) {
      const Region& region = regions_[i];
      if (begin < region.offset || begin >= region.offset + region.bytes)
        continue;
      const uint64_t into = begin - region.offset;
      ExtentBytes extent{.bytes = mapped_[i].host + into, .own = ram_of(regions_, number)};
      if (incremental_)
        extent.own = extent.own & dirty_of(mapped_[i], into / kPageBytes);
      return extent;
    }
    return ExtentBytes{}; // between two regions
  }

private:
  [[nodiscard]] static PageSet dirty_of(const MappedRegion& region, uint64_t first) {
    PageSet pages;
    for (size_t page = 0; page < kExtentPages; ++page) {
      const uint64_t bit = first + page;
      if (bit / 64 >= region.dirty.size() || (region.dirty[bit / 64] >> (bit % 64) & 1) != 0)
        pages.add(page);
    }
    return pages;
  }

  std::vector<MappedRegion> mapped_;
  std::vector<Region> regions_;
  bool incremental_;
};

} // namespace

std::unique_ptr<MemorySource> source_of(std::vector<MappedRegion> regions, bool incremental) {
  return std::make_unique<MappedSource>(std::move(regions), incremental);
}

} // namespace stopvisor::snapshot
