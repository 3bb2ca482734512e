// SPDX-License-Identifier: Apache-2.0
#include "vmm/linux/kernel_memory.h"

#include <algorithm>

#include "vmm/page_walk.h"

namespace stopvisor::vmm {

bool KernelMemory::read(uint64_t gva, std::span<std::byte> to) const noexcept {
  if (to.empty() || to.size() - 1 > UINT64_MAX - gva)
    return to.empty();
  while (!to.empty()) {
    const Block block = block_at(Gva{gva}, paging_, memory_);
    if (!block.page)
      return false;
    const uint64_t step = std::min<uint64_t>(to.size(), block.bytes - (gva & (block.bytes - 1)));
    if (!memory_.read(block.page->gpa, to.first(step)))
      return false;
    to = to.subspan(step);
    gva += step;
  }
  return true;
}

std::optional<std::string> KernelMemory::text(uint64_t gva, size_t most) const {
  std::string line;
  while (line.size() < most) {
    const auto c = value<char>(gva + line.size());
    if (!c)
      return std::nullopt;
    if (*c == '\0')
      break;
    line += printable(*c);
  }
  return line;
}

std::optional<Gpa> KernelMemory::physical(uint64_t gva) const noexcept {
  const Block block = block_at(Gva{gva}, paging_, memory_);
  if (!block.page)
    return std::nullopt;
  return block.page->gpa;
}

} // namespace stopvisor::vmm
