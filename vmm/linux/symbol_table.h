// SPDX-License-Identifier: Apache-2.0
// A kernel's symbols: found by name, and by an address in or after them.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stopvisor::vmm {

struct Symbol {
  uint64_t address = 0;
  char type = '?'; // as nm(1) has it
  std::string_view name;
  bool operator==(const Symbol&) const = default;
};

struct SymbolPlace {
  Symbol symbol; // the nearest at or before the address
  uint64_t offset = 0;
  // "name+0x1f", or "name".
  [[nodiscard]] std::string text() const;
};

// Filled first, then sorted, then read by any number of threads.
class SymbolTable {
public:
  static constexpr size_t kMostSymbols = size_t{1} << 20;    // kernels have 100,000 to 250,000
  static constexpr size_t kMostNameBytes = size_t{64} << 20; // of all names together
  static constexpr size_t kLongestName = 1024;               // Linux has 512 (KSYM_NAME_LEN)

  // RETURNS: false where there are too many, or the name is empty, too long, or not printable ASCII.
  [[nodiscard]] bool add(uint64_t address, char type, std::string_view name);
  // Once, after the last add().
  void sort();

  [[nodiscard]] size_t size() const noexcept { return entries_.size(); }
  // In ascending order of addresses, `index` below size().
  [[nodiscard]] Symbol operator[](size_t index) const noexcept;
  // All of that name: static functions of different files may share one.
  [[nodiscard]] std::vector<Symbol> named(std::string_view name) const;
  // Where exactly one symbol has that name.
  [[nodiscard]] std::optional<uint64_t> address_of(std::string_view name) const;
  // Nothing before the first kernel address and from the last symbol (the image's end) on. Of several symbols at
  // one address a global function is preferred.
  [[nodiscard]] std::optional<SymbolPlace> place_of(uint64_t address) const;

private:
  struct Entry {
    uint64_t address;
    uint32_t name; // in names_
    uint16_t length;
    char type;
  };
  // A hash of the name, and which entry has it. Sorted, and not a hash table: whoever chooses the names could make
  // all of them collide.
  struct Name {
    uint32_t hash;
    uint32_t entry;
    auto operator<=>(const Name&) const = default;
  };
  std::vector<Entry> entries_;
  std::string names_;
  std::vector<Name> by_name_;
};

// Whether a symbol's value is an address. Linux on x86-64 before 6.15 numbers its per-CPU variables from 0.
[[nodiscard]] constexpr bool is_kernel_address(uint64_t value) {
  return value >> 63 != 0;
}

} // namespace stopvisor::vmm
