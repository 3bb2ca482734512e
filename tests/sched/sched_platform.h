// SPDX-License-Identifier: Apache-2.0
// The stopper's Platform under the deterministic scheduler: every operation is a step, and none on dead memory.
//
// The values lie in real atomics, and the orders the stopper asks for are passed on. The schedules themselves
// are sequentially consistent; under ThreadSanitizer an order that is too weak still shows (see fiber.h).
#pragma once

#include <atomic>
#include <cstdint>

#include "tests/sched/engine.h"

namespace stopvisor::sched {

// Knows whether it lives: an operation on one that was destroyed is a use after free, whatever the memory says.
template <class T>
class SchedAtomic {
public:
  constexpr SchedAtomic() noexcept : SchedAtomic(T{}) {}
  // NOLINTNEXTLINE(google-explicit-constructor): as std::atomic's
  constexpr SchedAtomic(T value) noexcept : value_(value) {}
  ~SchedAtomic() {
    *static_cast<volatile uint32_t*>(&alive_) = kDead;
    asm volatile("" ::"r"(&alive_) : "memory"); // a store into a dying object is a store all the same
  }
  SchedAtomic(const SchedAtomic&) = delete;
  SchedAtomic& operator=(const SchedAtomic&) = delete;

  T load(std::memory_order order, Place where = Place::current()) const noexcept {
    step(Access::kRead, "load", where);
    const T value = value_.load(order);
    Engine::get().note("= %lld", static_cast<long long>(value));
    return value;
  }
  void store(T value, std::memory_order order, Place where = Place::current()) noexcept {
    step(Access::kWrite, "store", where);
    Engine::get().note("%lld -> %lld", plain(), static_cast<long long>(value));
    value_.store(value, order);
  }
  T exchange(T value, std::memory_order order, Place where = Place::current()) noexcept {
    step(Access::kWrite, "exchange", where);
    Engine::get().note("%lld -> %lld", plain(), static_cast<long long>(value));
    return value_.exchange(value, order);
  }
  // Nothing is read after the operation: others may have seen it and ended the object's life.
  T fetch_add(T value, std::memory_order order, Place where = Place::current()) noexcept {
    step(Access::kWrite, "fetch_add", where);
    const T old = value_.fetch_add(value, order);
    return modified(old, static_cast<T>(old + value));
  }
  T fetch_sub(T value, std::memory_order order, Place where = Place::current()) noexcept {
    step(Access::kWrite, "fetch_sub", where);
    const T old = value_.fetch_sub(value, order);
    return modified(old, static_cast<T>(old - value));
  }
  T fetch_or(T value, std::memory_order order, Place where = Place::current()) noexcept {
    step(Access::kWrite, "fetch_or", where);
    const T old = value_.fetch_or(value, order);
    return modified(old, static_cast<T>(old | value));
  }
  T fetch_and(T value, std::memory_order order, Place where = Place::current()) noexcept {
    step(Access::kWrite, "fetch_and", where);
    const T old = value_.fetch_and(value, order);
    return modified(old, static_cast<T>(old & value));
  }
  bool compare_exchange_strong(T& expected, T value, std::memory_order success, std::memory_order failure,
                               Place where = Place::current()) noexcept {
    step(Access::kWrite, "compare_exchange", where);
    Engine::get().note("%lld -> %lld if %lld", plain(), static_cast<long long>(value),
                       static_cast<long long>(expected));
    return value_.compare_exchange_strong(expected, value, success, failure);
  }
  bool compare_exchange_weak(T& expected, T value, std::memory_order success, std::memory_order failure,
                             Place where = Place::current()) noexcept {
    if (Engine::get().active() && Engine::get().toss(16) == 1) { // it may fail without a reason
      step(Access::kRead, "compare_exchange fails spuriously", where);
      expected = value_.load(failure);
      return false;
    }
    return compare_exchange_strong(expected, value, success, failure, where);
  }

private:
  friend struct SchedPlatform;
  static constexpr uint32_t kAlive = 0xa11ce5ed;
  static constexpr uint32_t kDead = 0xdeadbeef;

  [[nodiscard]] long long plain() const noexcept {
    return static_cast<long long>(value_.load(std::memory_order_relaxed)); // for the trace
  }
  void check_alive(const char* what, Place where) const noexcept {
    if (alive_ != kAlive)
      Engine::get().fail("%s of an atomic that does not exist any more, %s:%u", what, where.file_name(),
                         static_cast<unsigned>(where.line()));
  }
  void step(Access access, const char* what, Place where) const noexcept {
    Engine::get().step(object_, access, what, where);
    check_alive(what, where); // after others had their turn
  }
  static T modified(T old, T now) noexcept {
    Engine::get().note("%lld -> %lld", static_cast<long long>(old), static_cast<long long>(now));
    return old;
  }

  std::atomic<T> value_;
  uint32_t alive_ = kAlive;
  mutable Object object_;
};

struct SchedPlatform {
  template <class T>
  using Atomic = SchedAtomic<T>;

  static void wait(const SchedAtomic<uint32_t>& word, uint32_t expected, TimePoint deadline,
                   Place where = Place::current()) noexcept {
    Engine& engine = Engine::get();
    word.step(Access::kRead, "wait", where); // the comparison and the going to sleep are one step, as in futex(2)
    engine.also(engine.wait_queue(&word), Access::kWrite);
    if (word.value_.load(std::memory_order_relaxed) != expected || engine.toss(64) == 1) // or for no reason
      return;
    engine.note("sleeps");
    engine.block(&word, deadline, "wait", where);
  }
  static void wake_one(const SchedAtomic<uint32_t>& word, Place where = Place::current()) noexcept {
    wake(word, false, where);
  }
  static void wake_all(const SchedAtomic<uint32_t>& word, Place where = Place::current()) noexcept {
    wake(word, true, where);
  }
  static bool relax(unsigned turn) noexcept { return turn == 0 && Engine::get().toss(4) == 1; }
  static void yield(Place where = Place::current()) noexcept { Engine::get().yield(where); }
  static TimePoint now() noexcept { return Engine::get().now(); }
  static void*& thread_slot() noexcept { return Engine::get().thread_slot(); }

private:
  // Only the address is used: the word may be gone.
  static void wake(const SchedAtomic<uint32_t>& word, bool all, Place where) noexcept {
    Engine& engine = Engine::get();
    engine.step(engine.wait_queue(&word), Access::kWrite, all ? "wake all" : "wake one", where);
    engine.unblock(&word, all);
  }
};

} // namespace stopvisor::sched
