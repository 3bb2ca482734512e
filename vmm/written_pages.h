// SPDX-License-Identifier: Apache-2.0
// Pages of guest memory that the host wrote by itself, which KVM's dirty log does not see.
//
// Migration takes them together with the dirty log (dirty_log.h), so whoever writes guest memory from the host
// notes it here, and does so after it has written:
//
//   who writes                                  who takes
//   ----------                                  ---------
//   writes bytes
//   bit := 1 (release)               -- WP1 --> bit := 0 (acquire); copies the page
//
// Where the taker finds the bit, it copies what was written. Where it does not, the bit is there for the next time.
// The other way round, a page might be taken and copied between the note and the write, and the write be lost.
// The last look of all is one under a stop. Callbacks under stops and device workers have noted everything by then,
// as a stop finds nobody in the middle of either; who takes part in no stop writes under write_outside().
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "vmm/dirty_pages.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm {

class WrittenPages {
public:
  explicit WrittenPages(std::span<const MemorySlot> slots);

  // All of them: [gpa, gpa + length) was written. What is no memory is left out. CONTEXT: any thread, does not
  // block.

  // What may be code.
  void note(Gpa gpa, uint64_t length) noexcept;
  // The same of memory as the host has it mapped.
  void note(std::span<const std::byte> host) noexcept;
  // What a device gave the guest: where that is code, it is the guest that has to see to it, as on real hardware.
  void note_data(Gpa gpa, uint64_t length) noexcept;
  void note_data(std::span<const std::byte> host) noexcept;
  void note_all() noexcept; // a reset

  // To be held by who takes part in no stop, from before the first byte until it has noted it. CONTEXT: any thread
  // but a callback's; briefly, as take() waits for it, under a stop too.
  [[nodiscard]] std::unique_lock<std::mutex> write_outside() { return std::unique_lock(outside_); }

  // How often something was noted that may be code. CONTEXT: any thread; who has taken part in a stop since a
  // callback's note() sees it.
  [[nodiscard]] uint64_t count() const noexcept {
    return count_.load(std::memory_order_relaxed);
  } // the stop orders it
  // Adds the pages noted since the last time to `into`, of the same memory. CONTEXT: one thread at a time; waits
  // for who is in write_outside().
  void take(DirtyPages& into);
  // The same by their first bytes, in ascending order.
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
  std::mutex outside_; // a leaf, but for Holds'
};

} // namespace stopvisor::vmm
