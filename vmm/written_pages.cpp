// SPDX-License-Identifier: Apache-2.0
#include "vmm/written_pages.h"

#include <algorithm>
#include <bit>

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kWordBits = 64;

} // namespace

WrittenPages::WrittenPages(std::span<const MemorySlot> slots) {
  for (const MemorySlot& slot : slots) {
    const uint64_t pages = (slot.size_bytes + kPageBytes - 1) / kPageBytes;
    slots_.push_back({slot.base, pages, slot.host,
                      std::make_unique<std::atomic<uint64_t>[]>((pages + kWordBits - 1) / kWordBits)});
  }
}

void WrittenPages::note(std::span<const std::byte> host) noexcept {
  for (const Slot& slot : slots_)
    if (host.data() >= slot.host && host.data() < slot.host + slot.pages * kPageBytes)
      note(Gpa{slot.base.value + static_cast<uint64_t>(host.data() - slot.host)}, host.size());
}

void WrittenPages::note(Gpa gpa, uint64_t length) noexcept {
  count_.fetch_add(1, std::memory_order_relaxed); // as count()
  for (const Slot& slot : slots_) {
    const uint64_t begin = std::max(gpa.value, slot.base.value);
    const uint64_t end = std::min(gpa.value + length, slot.base.value + slot.pages * kPageBytes);
    for (uint64_t at = begin & ~(kPageBytes - 1); begin < end && at < end; at += kPageBytes) {
      const uint64_t page = (at - slot.base.value) / kPageBytes;
      // relaxed: a bit by itself; that the bytes are there when it is seen comes from the stop both lie under.
      slot.bits[page / kWordBits].fetch_or(1ULL << (page % kWordBits), std::memory_order_relaxed);
    }
  }
}

std::vector<Gpa> WrittenPages::take() {
  std::vector<Gpa> pages;
  for (const Slot& slot : slots_)
    for (uint64_t word = 0; word * kWordBits < slot.pages; ++word)
      for (uint64_t bits = slot.bits[word].exchange(0, std::memory_order_relaxed); bits != 0; bits &= bits - 1)
        pages.push_back(Gpa{slot.base.value + (word * kWordBits + unsigned(std::countr_zero(bits))) * kPageBytes});
  return pages;
}

} // namespace stopvisor::vmm
