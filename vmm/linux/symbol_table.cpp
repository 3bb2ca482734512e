// SPDX-License-Identifier: Apache-2.0
#include "vmm/linux/symbol_table.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "vmm/units.h"

namespace stopvisor::vmm {

namespace {

uint32_t hash_of(std::string_view name) {
  return static_cast<uint32_t>(std::hash<std::string_view>{}(name));
}

} // namespace

std::string SymbolPlace::text() const {
  return std::string(symbol.name) + (offset == 0 ? "" : "+" + to_hex(offset));
}

bool SymbolTable::add(uint64_t address, char type, std::string_view name) {
  const auto shown = [](char c) { return c > ' ' && c < 0x7f; };
  if (entries_.size() >= kMostSymbols || name.empty() || name.size() > kLongestName || !shown(type) ||
      !std::ranges::all_of(name, shown) || names_.size() + name.size() > kMostNameBytes)
    return false;
  entries_.push_back({address, static_cast<uint32_t>(names_.size()), static_cast<uint16_t>(name.size()), type});
  names_ += name;
  return true;
}

void SymbolTable::sort() {
  entries_.shrink_to_fit();
  names_.shrink_to_fit();
  std::ranges::sort(entries_, {}, [](const Entry& entry) { return std::pair(entry.address, entry.name); });
  by_name_.reserve(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i)
    by_name_.push_back({hash_of((*this)[i].name), static_cast<uint32_t>(i)});
  std::ranges::sort(by_name_);
}

Symbol SymbolTable::operator[](size_t index) const noexcept {
  const Entry& entry = entries_[index];
  return {entry.address, entry.type, std::string_view(names_).substr(entry.name, entry.length)};
}

std::vector<Symbol> SymbolTable::named(std::string_view name) const {
  std::vector<Symbol> found;
  const uint32_t hash = hash_of(name);
  for (auto at = std::ranges::lower_bound(by_name_, hash, {}, &Name::hash);
       at != by_name_.end() && at->hash == hash; ++at)
    if (const Symbol symbol = (*this)[at->entry]; symbol.name == name)
      found.push_back(symbol);
  return found;
}

std::optional<uint64_t> SymbolTable::address_of(std::string_view name) const {
  const auto found = named(name);
  if (found.size() != 1)
    return std::nullopt;
  return found.front().address;
}

std::optional<SymbolPlace> SymbolTable::place_of(uint64_t address) const {
  if (entries_.empty() || !is_kernel_address(address) || address >= entries_.back().address)
    return std::nullopt;
  const auto after = std::ranges::upper_bound(entries_, address, {}, &Entry::address);
  if (after == entries_.begin() || !is_kernel_address(std::prev(after)->address))
    return std::nullopt;
  auto best = std::prev(after);
  for (auto at = best; at->address == best->address; --at) {
    if (at->type == 'T') {
      best = at;
      break;
    }
    if (at == entries_.begin())
      break;
  }
  return SymbolPlace{(*this)[static_cast<size_t>(best - entries_.begin())], address - best->address};
}

} // namespace stopvisor::vmm
