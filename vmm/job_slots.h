// SPDX-License-Identifier: Apache-2.0
// The jobs a guest has given a device: one place for each register it may write, the newest number counts.
//
// A guest that rings a million times makes no memory grow and keeps nobody waiting: a job that was not taken yet is
// overwritten. No lock, as the thread of a vCPU must never wait for a worker that lost its processor.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace stopvisor::vmm {

struct Job {
  uint32_t slot = 0;
  uint64_t number = 0;
};

template <uint32_t Slots>
class JobSlots {
public:
  // Leaves a job in `slot` (below Slots). CONTEXT: any thread, does not block.
  // RETURNS: whether the taker must be told; else somebody who came before has told it, or is about to.
  [[nodiscard]] bool put(uint32_t slot, uint64_t number) noexcept {
    numbers_[slot].store(number, std::memory_order_relaxed); // published by J1
    const uint64_t bit = bit_of(slot);
    // J1, release, pairs with take(). A read-modify-write also where the bit is set: the taker that clears it then
    // acquires from all who have set it.
    return (pending_[slot / kBits].fetch_or(bit, std::memory_order_release) & bit) == 0;
  }

  // The next job, in turn: no slot is passed over twice. The bit goes before the number is read, so that a number
  // that comes between is taken now, and once more. CONTEXT: one thread, the taker.
  [[nodiscard]] std::optional<Job> take() noexcept {
    for (uint32_t turn = 0; turn <= kWords; ++turn) {
      const uint32_t word = (next_ / kBits + turn) % kWords;
      // relaxed: who misses a bit here finds its own wake-up raised, see DeviceWorker.
      uint64_t bits = pending_[word].load(std::memory_order_relaxed);
      if (turn == 0)
        bits &= ~uint64_t{0} << (next_ % kBits);
      if (bits == 0)
        continue;
      const uint32_t slot = word * kBits + static_cast<uint32_t>(std::countr_zero(bits));
      pending_[word].fetch_and(~bit_of(slot), std::memory_order_acquire); // J1
      next_ = (slot + 1) % Slots;
      return Job{slot, numbers_[slot].load(std::memory_order_relaxed)}; // after J1
    }
    return std::nullopt;
  }

  // Calls see(slot, number) for each job that was not taken yet, by rising slots. CONTEXT: as drop().
  template <class See>
  void each(See see) const {
    for (uint32_t slot = 0; slot < Slots; ++slot) // relaxed: ordered by the stop
      if ((pending_[slot / kBits].load(std::memory_order_relaxed) & bit_of(slot)) != 0)
        see(slot, numbers_[slot].load(std::memory_order_relaxed));
  }

  // Forgets all jobs. CONTEXT: neither put() nor take() is going on (under a stop).
  void drop() noexcept {
    for (std::atomic<uint64_t>& word : pending_)
      word.store(0, std::memory_order_relaxed); // ordered by the stop
  }

private:
  static constexpr uint32_t kBits = 64;
  static constexpr uint32_t kWords = Slots / kBits;
  static_assert(Slots % kBits == 0 && kWords != 0);
  static constexpr uint64_t bit_of(uint32_t slot) noexcept { return uint64_t{1} << (slot % kBits); }

  std::array<std::atomic<uint64_t>, Slots> numbers_{};
  std::array<std::atomic<uint64_t>, kWords> pending_{};
  uint32_t next_ = 0; // the taker's
};

} // namespace stopvisor::vmm
