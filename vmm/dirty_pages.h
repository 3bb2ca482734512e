// SPDX-License-Identifier: Apache-2.0
// A set of pages of guest memory, a bit each: what is to be sent, or was written since somebody looked last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmm/address.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm {

class DirtyPages {
public:
  // Of memory laid out as `slots`; none is in it.
  explicit DirtyPages(std::span<const MemorySlot> slots);

  void add_all() noexcept;
  void clear() noexcept;
  // What is no memory is left out.
  void add(Gpa gpa, uint64_t length) noexcept;
  [[nodiscard]] uint64_t count() const noexcept; // pages
  [[nodiscard]] bool empty() const noexcept { return count() == 0; }

  // The bits of one slot, page 0 first, 64 a word; those beyond the slot's end are 0 and stay so.
  struct Slot {
    Gpa base;
    uint64_t pages = 0;
    uint64_t first = 0; // the number of its first page, counted through all slots
    std::byte* host = nullptr;
    std::vector<uint64_t> words;
  };
  [[nodiscard]] std::span<Slot> slots() noexcept { return slots_; }
  [[nodiscard]] std::span<const Slot> slots() const noexcept { return slots_; }

private:
  std::vector<Slot> slots_;
};

} // namespace stopvisor::vmm
