// SPDX-License-Identifier: Apache-2.0
// The second of the stopper's two interfaces to the world, and its native form: how threads wait.
//
// Every part of the stopper is a template over a Platform, so that the very code that runs in production also
// runs under the deterministic scheduler of tests/sched/. A Platform provides:
//
//   template <class T> Atomic        std::atomic's members, orders given explicitly
//   wait(word, expected, deadline)   block while word == expected, at most until deadline; may return early
//   wake_one(word), wake_all(word)   end such waits
//   relax(turn)                      one turn of a short spin, turn = 0, 1, ...: false when it is time to wait
//   yield()                          let others run
//   now()                            the clock of deadlines and reports
//   thread_slot()                    one pointer per thread, initially null
#pragma once

#include <atomic>
#include <cstdint>

#include "stopper/time.h"

namespace stopvisor::stopper {

struct FutexPlatform {
  template <class T>
  using Atomic = std::atomic<T>;

  // CONTEXT: blocks. May return spuriously; the caller loops. A word that lived on another thread's stack may
  // be gone when wake_*() is called on it: the futex call uses the address as a name only and reads nothing.
  static void wait(const std::atomic<uint32_t>& word, uint32_t expected, TimePoint deadline) noexcept;
  static void wake_one(const std::atomic<uint32_t>& word) noexcept;
  static void wake_all(const std::atomic<uint32_t>& word) noexcept;

  // Spinning pays only where the other side is about to act on another core; with more vCPUs than cores it
  // steals the very time the other side needs. Hence a spin of about 1 us, then a real wait.
  static bool relax(unsigned turn) noexcept;
  static void yield() noexcept;
  static TimePoint now() noexcept { return Clock::now(); }
  static void*& thread_slot() noexcept;
};

} // namespace stopvisor::stopper
