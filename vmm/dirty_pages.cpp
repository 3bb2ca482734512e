// SPDX-License-Identifier: Apache-2.0
#include "vmm/dirty_pages.h"

#include <algorithm>
#include <bit>

namespace stopvisor::vmm {

DirtyPages::DirtyPages(std::span<const MemorySlot> slots) {
  uint64_t first = 0;
  for (const MemorySlot& slot : slots) {
    const uint64_t pages = (slot.size_bytes + kPageBytes - 1) / kPageBytes;
    slots_.push_back({.base = slot.base,
                      .pages = pages,
                      .first = first,
                      .host = slot.host,
                      .words = std::vector<uint64_t>((pages + kWordPages - 1) / kWordPages)});
    first += pages;
  }
}

void DirtyPages::add_all() noexcept {
  for (Slot& slot : slots_)
    for (uint64_t word = 0; word < slot.words.size(); ++word)
      slot.words[word] = mask_of(word, 0, slot.pages);
}

void DirtyPages::clear() noexcept {
  for (Slot& slot : slots_)
    std::ranges::fill(slot.words, 0);
}

void DirtyPages::add(Gpa gpa, uint64_t length) noexcept {
  for (Slot& slot : slots_) {
    const uint64_t slot_end = slot.base.value + slot.pages * kPageBytes;
    if (length == 0 || gpa.value >= slot_end)
      continue;
    const uint64_t end = length > slot_end - gpa.value ? slot_end : gpa.value + length;
    if (end <= slot.base.value)
      continue;
    const uint64_t first = (std::max(gpa.value, slot.base.value) - slot.base.value) / kPageBytes;
    const uint64_t last = (end - 1 - slot.base.value) / kPageBytes;
    for (uint64_t word = first / kWordPages; word <= last / kWordPages; ++word)
      slot.words[word] |= mask_of(word, first, last + 1);
  }
}

void DirtyPages::add(const DirtyPages& other) noexcept {
  for (size_t slot = 0; slot < std::min(slots_.size(), other.slots_.size()); ++slot)
    add_words(slot, other.slots_[slot].words);
}

void DirtyPages::add_words(size_t slot, std::span<const uint64_t> words, uint64_t first_word) noexcept {
  Slot& to = slots_[slot];
  for (size_t word = 0; word < words.size() && first_word + word < to.words.size(); ++word)
    to.words[first_word + word] |= words[word];
  if (!to.words.empty())
    to.words.back() &= mask_of(to.words.size() - 1, 0, to.pages);
}

uint64_t DirtyPages::count() const noexcept {
  uint64_t sum = 0;
  for (const Slot& slot : slots_)
    for (const uint64_t word : slot.words)
      sum += static_cast<unsigned>(std::popcount(word));
  return sum;
}

bool DirtyPages::empty() const noexcept {
  return std::ranges::all_of(slots_, [](const Slot& slot) {
    return std::ranges::all_of(slot.words, [](uint64_t word) { return word == 0; });
  });
}

} // namespace stopvisor::vmm
