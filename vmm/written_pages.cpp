// SPDX-License-Identifier: Apache-2.0
#include "vmm/written_pages.h"

#include <algorithm>
#include <bit>

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kWordPages = DirtyPages::kWordPages;

uint64_t words_of(uint64_t pages) {
  return (pages + kWordPages - 1) / kWordPages;
}

} // namespace

WrittenPages::WrittenPages(std::span<const MemorySlot> slots) {
  for (const MemorySlot& slot : slots) {
    const uint64_t pages = (slot.size_bytes + kPageBytes - 1) / kPageBytes;
    slots_.push_back({slot.base, pages, slot.host, std::make_unique<std::atomic<uint64_t>[]>(words_of(pages))});
  }
}

void WrittenPages::note(Gpa gpa, uint64_t length) noexcept {
  note_data(gpa, length);
  count_.fetch_add(1, std::memory_order_relaxed); // as count()
}

void WrittenPages::note(std::span<const std::byte> host) noexcept {
  note_data(host);
  count_.fetch_add(1, std::memory_order_relaxed); // as count()
}

void WrittenPages::note_data(std::span<const std::byte> host) noexcept {
  for (const Slot& slot : slots_)
    if (host.data() >= slot.host && host.data() < slot.host + slot.pages * kPageBytes)
      note_data(Gpa{slot.base.value + static_cast<uint64_t>(host.data() - slot.host)}, host.size());
}

void WrittenPages::note_data(Gpa gpa, uint64_t length) noexcept {
  for (const Slot& slot : slots_) {
    const uint64_t begin = std::max(gpa.value, slot.base.value);
    const uint64_t end = std::min(gpa.value + length, slot.base.value + slot.pages * kPageBytes);
    if (begin >= end)
      continue;
    const uint64_t first = (begin - slot.base.value) / kPageBytes;
    const uint64_t last = (end - 1 - slot.base.value) / kPageBytes;
    for (uint64_t word = first / kWordPages; word <= last / kWordPages; ++word)
      // Always: to leave a bit alone that is set already would be to look at it before the bytes are seen.
      slot.bits[word].fetch_or(DirtyPages::mask_of(word, first, last + 1), std::memory_order_release); // WP1
  }
}

void WrittenPages::note_all() noexcept {
  for (const Slot& slot : slots_)
    note_data(slot.base, slot.pages * kPageBytes);
}

void WrittenPages::take(DirtyPages& into) {
  {
    const std::scoped_lock nobody_is_in_the_middle(outside_);
  }
  for (size_t slot = 0; slot < slots_.size(); ++slot)
    for (uint64_t word = 0; word < words_of(slots_[slot].pages); ++word)
      if (const uint64_t bits = slots_[slot].bits[word].exchange(0, std::memory_order_acquire); bits != 0) // WP1
        into.add_words(slot, {&bits, 1}, word);
}

std::vector<Gpa> WrittenPages::take() {
  std::vector<Gpa> pages;
  {
    const std::scoped_lock nobody_is_in_the_middle(outside_);
  }
  for (const Slot& slot : slots_)
    for (uint64_t word = 0; word < words_of(slot.pages); ++word)
      for (uint64_t bits = slot.bits[word].exchange(0, std::memory_order_acquire); bits != 0;
           bits &= bits - 1) // WP1
        pages.push_back(Gpa{slot.base.value + (word * kWordPages + unsigned(std::countr_zero(bits))) * kPageBytes});
  return pages;
}

} // namespace stopvisor::vmm
