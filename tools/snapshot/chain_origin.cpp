// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/chain_origin.h"

#include <algorithm>

namespace stopvisor::snapshot {

std::optional<uint64_t> ChainOrigin::place_of(uint64_t offset) const {
  for (const Region& region : chain_.regions()) {
    if (offset < region.bytes)
      return region.offset + offset;
    offset -= region.bytes;
  }
  return std::nullopt;
}

bool ChainOrigin::is_zero_extent(uint64_t number) const {
  PageSet left = ram_of(chain_.regions(), number);
  for (const Snapshot& member : chain_.members()) {
    const Extent& entry = member.index()[number];
    if (!(entry.data & left).empty())
      return false;
    left = left & ~entry.zeros;
  }
  return true;
}

bool ChainOrigin::is_zero(uint64_t offset, uint64_t bytes) const {
  for (uint64_t at = offset; at < offset + bytes; at += kExtentBytes) {
    const auto place = place_of(at);
    if (!place || !is_zero_extent(*place / kExtentBytes))
      return false;
  }
  return true;
}

std::expected<void, vmm::Error> ChainOrigin::read(uint64_t offset, std::span<std::byte> to, bool zeros) const {
  while (!to.empty()) {
    const auto place = place_of(offset);
    if (!place || *place % kExtentBytes != 0)
      return std::unexpected(chain_.newest().error("", "has no memory for this machine"));
    const size_t size = std::min<size_t>(to.size(), kExtentBytes);
    if (auto read = chain_.read_extent(*place / kExtentBytes, to.first(size), zeros ? PageSet{} : ~PageSet{});
        !read)
      return read;
    to = to.subspan(size);
    offset += size;
  }
  return {};
}

} // namespace stopvisor::snapshot
