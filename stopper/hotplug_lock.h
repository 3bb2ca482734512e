// SPDX-License-Identifier: Apache-2.0
// The hotplug lock: stops read, bringing a vCPU online writes. The counterpart of cpus_read_lock().
//
// A stop that is held for a client keeps the read side for as long as it is held, and another thread may let
// it go; so the lock is not owned by threads, and the write side takes a deadline.
#pragma once

#include <cstdint>

#include "stopper/lock.h"
#include "stopper/time.h"

namespace stopvisor::stopper {

template <class P>
class BasicHotplugLock {
public:
  // CONTEXT: may block while a writer waits or works. RETURNS: false where `deadline` passed first.
  [[nodiscard]] bool read_lock_until(TimePoint deadline) noexcept {
    return take_until(
        deadline, [](uint32_t word) { return (word & (kWriter | kWriterWaits)) == 0; },
        [](uint32_t word) { return word + 1; });
  }
  void read_unlock() noexcept {
    // release: what was done under the read side is seen by the next writer (H1).
    const uint32_t before = word_.fetch_sub(1, std::memory_order_release);
    if ((before & ~kWriterWaits) == 1)
      P::wake_all(word_);
  }
  // A waiting writer keeps new readers out, so that a storm of stops cannot starve hotplug.
  // RETURNS: false where `deadline` passed first.
  [[nodiscard]] bool write_lock_until(TimePoint deadline) noexcept NO_THREAD_SAFETY_ANALYSIS {
    if (!writers_.lock_until(deadline))
      return false;
    word_.fetch_or(kWriterWaits, std::memory_order_relaxed); // orders nothing by itself: H1 below does
    const bool taken =
        take_until(deadline, [](uint32_t word) { return word == kWriterWaits; }, [](uint32_t) { return kWriter; });
    if (!taken) {
      word_.fetch_and(~kWriterWaits, std::memory_order_relaxed); // nothing was done under it
      P::wake_all(word_);
      writers_.unlock();
    }
    return taken;
  }
  void write_unlock() noexcept NO_THREAD_SAFETY_ANALYSIS {
    word_.store(0, std::memory_order_release); // H1
    P::wake_all(word_);
    writers_.unlock();
  }

private:
  static constexpr uint32_t kWriter = 1u << 31;
  static constexpr uint32_t kWriterWaits = 1u << 30; // the low bits count readers

  template <class MayTake, class Taken>
  bool take_until(TimePoint deadline, MayTake may_take, Taken taken) noexcept {
    uint32_t word = word_.load(std::memory_order_relaxed); // the exchange below acquires
    for (;;) {
      if (may_take(word)) {
        // acquire: pairs with H1 of whoever had the other side.
        if (word_.compare_exchange_weak(word, taken(word), std::memory_order_acquire, std::memory_order_relaxed))
          return true;
        continue;
      }
      if (deadline != kForever && P::now() >= deadline)
        return false;
      P::wait(word_, word, deadline);
      word = word_.load(std::memory_order_relaxed);
    }
  }

  BasicLock<P> writers_; // one writer at a time; outermost
  typename P::template Atomic<uint32_t> word_{0};
};

} // namespace stopvisor::stopper
