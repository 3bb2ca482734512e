// SPDX-License-Identifier: Apache-2.0
// A lock of one word over a Platform: spins briefly, then waits, if asked only until a deadline.
//
// std::mutex cannot run under the deterministic scheduler, has no deadline on the monotonic clock everywhere,
// and must be released by the thread that took it; a stop held for a client may be let go by another thread.
// Ranks (an outer lock first): service, hotplug, stop facility, report, stopper[0], stopper[1], ...
#pragma once

#include <cstdint>

#include "stopper/annotations.h"
#include "stopper/time.h"

namespace stopvisor::stopper {

template <class P>
class CAPABILITY("mutex") BasicLock {
public:
  // CONTEXT: may block; any thread may unlock.
  void lock() noexcept ACQUIRE() { acquire(kForever); }
  void unlock() noexcept RELEASE() {
    // release: pairs with the acquire in acquire() and try_lock() (L1).
    if (word_.exchange(kFree, std::memory_order_release) == kContended)
      P::wake_one(word_);
  }
  [[nodiscard]] bool try_lock() noexcept TRY_ACQUIRE(true) {
    uint32_t expected = kFree;
    return word_.compare_exchange_strong(expected, kTaken, std::memory_order_acquire, // L1
                                         std::memory_order_relaxed);                  // failed: nothing read
  }
  // RETURNS: false where `deadline` passed first.
  [[nodiscard]] bool lock_until(TimePoint deadline) noexcept TRY_ACQUIRE(true) { return acquire(deadline); }

private:
  static constexpr uint32_t kFree = 0;
  static constexpr uint32_t kTaken = 1;
  static constexpr uint32_t kContended = 2; // taken, and somebody may be waiting

  bool acquire(TimePoint deadline) noexcept NO_THREAD_SAFETY_ANALYSIS {
    for (unsigned turn = 0;; ++turn) {
      if (try_lock())
        return true;
      if (!P::relax(turn))
        break;
    }
    // From here on we mark the word contended, also when we get it: others may be waiting too, and the mark
    // must outlive us or their wake-up would be lost.
    while (word_.exchange(kContended, std::memory_order_acquire) != kFree) { // L1
      if (deadline != kForever && P::now() >= deadline)
        return false;
      P::wait(word_, kContended, deadline);
    }
    return true;
  }

  typename P::template Atomic<uint32_t> word_{kFree};
};

// Holds a lock for a scope.
template <class P>
class SCOPED_CAPABILITY BasicLockGuard {
public:
  explicit BasicLockGuard(BasicLock<P>& lock) noexcept ACQUIRE(lock) : lock_(lock) { lock_.lock(); }
  ~BasicLockGuard() RELEASE() { lock_.unlock(); }
  BasicLockGuard(const BasicLockGuard&) = delete;
  BasicLockGuard& operator=(const BasicLockGuard&) = delete;

private:
  BasicLock<P>& lock_;
};

} // namespace stopvisor::stopper
