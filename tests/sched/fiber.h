// SPDX-License-Identifier: Apache-2.0
// Fibers: stacks that are switched by hand, so that one thread plays all threads of a schedule.
//
// ucontext would do, but enters the kernel at each switch for the signal mask; a schedule switches a thousand
// times, and we run some hundred thousand schedules. Both sanitizers are told of every switch. TSan is told that
// a switch synchronises nothing: what orders two fibers is then the stopper's own atomics alone, and an order
// too weak shows as a data race in a schedule that can be repeated.
#pragma once

#include <cstddef>
#include <memory>

#include "tests/sanitized.h"

// STOPVISOR_SCHED_TSAN comes from the build: in such a one the stopper is instrumented, but nothing here is.

namespace stopvisor::sched {

// One stack and where it was left. CONTEXT: one thread uses all fibers.
class Fiber {
public:
  Fiber() noexcept = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next switch_to() call entry() on an empty stack; whatever was on the stack is forgotten.
  // `entry` must not return.
  void prepare(void (*entry)());
  // Leaves `from` and goes on in `to`. The thread's own stack is a Fiber that was never prepared.
  static void switch_between(Fiber& from, Fiber& to) noexcept;
  // The first call on a fiber's stack; sanitizers want to know.
  static void arrived() noexcept;
  // What the caller did until now happens before what others do after they called seen(name).
  static void publish(const void* name) noexcept;
  static void seen(const void* name) noexcept;

private:
  static constexpr size_t kStackBytes = size_t{256} * 1024;

  void* saved_ = nullptr; // the stack pointer
  std::byte* stack_ = nullptr;
  [[maybe_unused]] void* fake_stack_ = nullptr; // ASan's
  [[maybe_unused]] void* tsan_fiber_ = nullptr;
};

} // namespace stopvisor::sched
