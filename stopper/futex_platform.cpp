// SPDX-License-Identifier: Apache-2.0
#include "stopper/futex_platform.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace stopvisor::stopper {
namespace {

constexpr unsigned kSpinTurns = 20;

long futex(const std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* until,
           uint32_t bitset) noexcept {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  return syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, value, until, nullptr, bitset);
}

} // namespace

void FutexPlatform::wait(const std::atomic<uint32_t>& word, uint32_t expected, TimePoint deadline) noexcept {
  // FUTEX_WAIT_BITSET takes an absolute time of CLOCK_MONOTONIC, which is steady_clock (futex(2)).
  timespec until{};
  const timespec* timeout = nullptr;
  if (deadline != kForever) {
    const auto since_boot = std::chrono::duration_cast<Nanoseconds>(deadline.time_since_epoch()).count();
    until.tv_sec = since_boot / 1'000'000'000;
    until.tv_nsec = since_boot % 1'000'000'000;
    timeout = &until;
  }
  futex(word, FUTEX_WAIT_BITSET, expected, timeout, FUTEX_BITSET_MATCH_ANY);
}

void FutexPlatform::wake_one(const std::atomic<uint32_t>& word) noexcept {
  futex(word, FUTEX_WAKE, 1, nullptr, 0);
}

void FutexPlatform::wake_all(const std::atomic<uint32_t>& word) noexcept {
  futex(word, FUTEX_WAKE, INT_MAX, nullptr, 0);
}

bool FutexPlatform::relax(unsigned turn) noexcept {
  if (turn >= kSpinTurns)
    return false;
  __builtin_ia32_pause();
  return true;
}

void FutexPlatform::yield() noexcept {
  sched_yield();
}

void*& FutexPlatform::thread_slot() noexcept {
  thread_local void* slot = nullptr;
  return slot;
}

} // namespace stopvisor::stopper
