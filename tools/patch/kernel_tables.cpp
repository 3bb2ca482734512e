// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/kernel_tables.h"

#include <algorithm>
#include <cstring>

namespace stopvisor::patch {
namespace {

constexpr uint64_t kMostTableBytes = 4 << 20;

// Entries of `entry_bytes` bytes that begin with the distance of the code from the entry, a signed 32-bit number.
// (Linux: include/linux/jump_label.h, struct jump_entry, 16 bytes; include/linux/static_call_types.h, struct
// static_call_site, 8 bytes.)
void add_table(const vmm::LinuxKernel& kernel, const vmm::GuestMemory& memory, const char* start, const char* stop,
               size_t entry_bytes, const char* kind, std::vector<SelfChanging>& list) {
  const auto begin = kernel.symbols().address_of(start);
  const auto end = kernel.symbols().address_of(stop);
  if (!begin || !end || *end <= *begin || *end - *begin > kMostTableBytes)
    return;
  std::vector<std::byte> table(*end - *begin);
  if (!kernel.memory_of(memory).read(*begin, table))
    return;
  for (size_t at = 0; at + entry_bytes <= table.size(); at += entry_bytes) {
    int32_t distance = 0;
    std::memcpy(&distance, table.data() + at, sizeof distance);
    list.push_back({*begin + at + static_cast<uint64_t>(int64_t{distance}), kind});
  }
}

bool is_code(char type) {
  return type == 't' || type == 'T' || type == 'w' || type == 'W';
}

} // namespace

std::optional<Extent> function_around(const vmm::SymbolTable& symbols, uint64_t address) {
  const auto place = symbols.place_of(address);
  if (!place || !is_code(place->symbol.type))
    return std::nullopt;
  // The first symbol after the address: by halves.
  size_t low = 0;
  size_t high = symbols.size();
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (symbols[middle].address > address)
      high = middle;
    else
      low = middle + 1;
  }
  if (low == symbols.size())
    return std::nullopt;
  return Extent{place->symbol.address, symbols[low].address};
}

std::vector<SelfChanging> self_changing_code(const vmm::LinuxKernel& kernel, const vmm::GuestMemory& memory) {
  std::vector<SelfChanging> list;
  add_table(kernel, memory, "__start___jump_table", "__stop___jump_table", 16, "a jump label", list);
  add_table(kernel, memory, "__start_static_call_sites", "__stop_static_call_sites", 8, "a static call", list);
  std::ranges::sort(list, {}, &SelfChanging::address);
  return list;
}

} // namespace stopvisor::patch
