// SPDX-License-Identifier: Apache-2.0
// Where regions of RAM lie in the memory file.
#include <algorithm>

#include "tools/snapshot/manifest.h"

namespace stopvisor::snapshot {
namespace {

constexpr uint64_t round_up(uint64_t value, uint64_t to) noexcept {
  return (value + to - 1) / to * to;
}

} // namespace

void lay_out(std::vector<Region>& regions) noexcept {
  uint64_t next = 0;
  for (Region& region : regions) {
    region.offset = next;
    next = round_up(next + region.bytes, kRegionAlignment);
  }
}

uint64_t span_of(const std::vector<Region>& regions) noexcept {
  return regions.empty() ? 0 : regions.back().offset + regions.back().bytes;
}

uint64_t extents_of(uint64_t span) noexcept {
  return round_up(span, kExtentBytes) / kExtentBytes;
}

PageSet ram_of(const std::vector<Region>& regions, uint64_t number) noexcept {
  PageSet pages;
  const uint64_t begin = number * kExtentBytes;
  for (const Region& region : regions) {
    const uint64_t from = std::max(begin, region.offset);
    const uint64_t to = std::min(begin + kExtentBytes, region.offset + region.bytes);
    if (from < to)
      pages.add((from - begin) / kPageBytes, (to - from + kPageBytes - 1) / kPageBytes);
  }
  return pages;
}

std::string fault_of(const std::vector<Region>& regions) {
  if (regions.empty() || regions.size() > kMaxRegions)
    return "must be 1 to " + std::to_string(kMaxRegions);
  uint64_t above = 0; // the end of the region before
  uint64_t offset = 0;
  for (const Region& region : regions) {
    if (region.bytes == 0 || region.bytes % kPageBytes != 0 || region.gpa % kPageBytes != 0)
      return "must begin and end at multiples of 4096, and not be empty";
    if (region.gpa < above || region.gpa + region.bytes < region.gpa)
      return "must be ordered by address, without overlaps";
    if (region.offset != offset || region.bytes > kMaxSpan || offset + region.bytes > kMaxSpan)
      return "must follow each other at multiples of 2 MiB, in at most 1 TiB";
    above = region.gpa + region.bytes;
    offset = round_up(offset + region.bytes, kRegionAlignment);
  }
  return {};
}

} // namespace stopvisor::snapshot
