// SPDX-License-Identifier: Apache-2.0
// Pages of guest memory that the host wrote by itself, which KVM's dirty log does not see.
//
// Snapshots and migration take them together with the dirty log.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "vmm/guest_memory.h"

namespace stopvisor::vmm {

class WrittenPages {
public:
  explicit WrittenPages(std::span<const MemorySlot> slots);

  // [gpa, gpa + length) was written, or is about to be. What is no memory is left out.
  // CONTEXT: any thread, does not block; who takes the pages under a stop has those of callbacks before it.
  void note(Gpa gpa, uint64_t length) noexcept;
  // The same of memory as the host has it mapped.
  void note(std::span<const std::byte> host) noexcept;
  // How often something was noted: whether code may have changed. CONTEXT: any thread; who has taken part in a stop
  // since a callback's note() sees it.
  [[nodiscard]] uint64_t count() const noexcept {
    return count_.load(std::memory_order_relaxed);
  } // the stop orders it
  // The pages noted since the last time, by their first bytes, in ascending order. CONTEXT: one thread at a time.
  [[nodiscard]] std::vector<Gpa> take();

private:
  struct Slot {
    Gpa base;
    uint64_t pages = 0;
    const std::byte* host = nullptr;
    std::unique_ptr<std::atomic<uint64_t>[]> bits;
  };
  std::vector<Slot> slots_; // fixed
  std::atomic<uint64_t> count_{0};
};

} // namespace stopvisor::vmm
