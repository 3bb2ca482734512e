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

// CONTEXT: one thread at a time.
class DirtyPages {
public:
  static constexpr uint64_t kWordPages = 64;
  // Of word `word`, the bits that stand for pages [begin, end).
  [[nodiscard]] static constexpr uint64_t mask_of(uint64_t word, uint64_t begin, uint64_t end) noexcept {
    const uint64_t first = word * kWordPages;
    const uint64_t from = begin > first ? begin - first : 0;
    const uint64_t to = end > first ? end - first : 0;
    const auto below = [](uint64_t bit) { return bit >= kWordPages ? ~uint64_t{0} : (uint64_t{1} << bit) - 1; };
    return below(to) & ~below(from);
  }

  // Of memory laid out as `slots`; none is in it.
  explicit DirtyPages(std::span<const MemorySlot> slots);

  void add_all() noexcept;
  void clear() noexcept;
  // What is no memory is left out.
  void add(Gpa gpa, uint64_t length) noexcept;
  // All that are in `other`, which is of the same memory.
  void add(const DirtyPages& other) noexcept;
  // Those of slot `slot` whose bits are set from `first_word` on. What lies beyond the slot's end is left out.
  void add_words(size_t slot, std::span<const uint64_t> words, uint64_t first_word = 0) noexcept;
  [[nodiscard]] uint64_t count() const noexcept; // pages
  [[nodiscard]] bool empty() const noexcept;

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
