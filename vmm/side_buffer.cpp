// SPDX-License-Identifier: Apache-2.0
#include "vmm/side_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace stopvisor::vmm {

std::expected<SideBuffer, Error> SideBuffer::create(std::string_view operation, uint64_t bytes,
                                                    uint64_t slot_bytes) {
  SideBuffer buffer;
  buffer.slot_bytes_ = slot_bytes;
  buffer.slots_ = std::clamp<uint64_t>((bytes + slot_bytes - 1) / slot_bytes, 1, kNone);
  buffer.unused_.reserve(buffer.slots_);
  void* const mapping = ::mmap(nullptr, buffer.slots_ * slot_bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED)
    return std::unexpected(system_error(operation, "side buffer", errno));
  buffer.mapping_ = static_cast<std::byte*>(mapping);
  // A wish: the first touch of a page costs more than copying it, and that of a huge page hardly more than it.
  (void)::madvise(mapping, buffer.slots_ * slot_bytes, MADV_HUGEPAGE);
  (void)::madvise(mapping, buffer.slots_ * slot_bytes, MADV_DONTDUMP);
  return buffer;
}

SideBuffer::SideBuffer(SideBuffer&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)), slot_bytes_(other.slot_bytes_), slots_(other.slots_),
      fresh_(other.fresh_), unused_(std::move(other.unused_)) {}

SideBuffer::~SideBuffer() {
  if (mapping_ != nullptr)
    ::munmap(mapping_, slots_ * slot_bytes_);
}

SideBuffer::Slot SideBuffer::take() noexcept {
  if (!unused_.empty()) { // the last one first: it is in the caches
    const Slot slot = unused_.back();
    unused_.pop_back();
    return slot;
  }
  return fresh_ < slots_ ? static_cast<Slot>(fresh_++) : kNone;
}

void SideBuffer::give_back(Slot slot) noexcept {
  unused_.push_back(slot);
}

} // namespace stopvisor::vmm
