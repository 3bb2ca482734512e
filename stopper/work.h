// SPDX-License-Identifier: Apache-2.0
// What is queued on a stopper, how callbacks are called, and how completion is counted.
#pragma once

#include <cstdint>

#include "stopper/cpu_mask.h"
#include "stopper/function_ref.h"
#include "stopper/time.h"

namespace stopvisor::stopper {

// What a callback is told. It must not call the stopper (it gets kWouldDeadlock), nor block for long.
struct StopContext {
  CpuId cpu;            // on whose thread it runs; kMaxCpus: on the thread that asked for the stop
  TimePoint budget_end; // the callback should be done by then; nothing is taken from it if it is not
};

// RETURNS: 0 for success; any other value is collected and handed to whoever asked for the stop.
using StopFn = FunctionRef<int(StopContext&)>;

// What a callback left behind.
struct Invocation {
  int result;
  bool threw;
};

// Calls `fn` so that no exception passes: a thread of a VM must survive its callbacks.
inline Invocation invoke(const StopFn& fn, StopContext& context) noexcept {
  try {
    return {fn(context), false};
  } catch (...) {
    return {0, true};
  }
}

// Counts down as works are executed, the counterpart of struct cpu_stop_done.
template <class P>
class BasicDone {
public:
  explicit BasicDone(uint32_t todo) noexcept : todo_(todo) {}

  // One execution is over. Only the last signal touches `complete_` after the count, and the waiter may destroy
  // this object as soon as complete_ is 1: hence the wake-up by address comes last and reads nothing.
  void signal(int result, bool threw) noexcept {
    // relaxed: published to the waiter by the counter below (D1).
    if (result != 0)
      result_.store(result, std::memory_order_relaxed);
    if (threw)
      threw_.store(1, std::memory_order_relaxed); // D1
    // acq_rel: the last one to count down has seen what all the others did (D1).
    if (todo_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      complete_.store(1, std::memory_order_release); // D2, pairs with wait() and done()
      P::wake_all(complete_);
    }
  }
  [[nodiscard]] bool done() const noexcept { return complete_.load(std::memory_order_acquire) != 0; } // D2
  // RETURNS: whether everything was executed before `deadline`.
  bool wait_until(TimePoint deadline) noexcept {
    for (unsigned turn = 0; !done(); ++turn) {
      if (P::relax(turn))
        continue;
      if (deadline != kForever && P::now() >= deadline)
        return done();
      P::wait(complete_, 0, deadline);
    }
    return true;
  }
  // Valid once done(). The last non-zero result wins, as in the kernel.
  [[nodiscard]] int result() const noexcept { return result_.load(std::memory_order_relaxed); }     // after D2
  [[nodiscard]] bool threw() const noexcept { return threw_.load(std::memory_order_relaxed) != 0; } // after D2

private:
  template <class T>
  using Atomic = typename P::template Atomic<T>;

  Atomic<uint32_t> todo_;
  Atomic<uint32_t> complete_{0};
  Atomic<int> result_{0};
  Atomic<uint32_t> threw_{0};
};

template <class P>
class BasicStopper;

// One entry of a stopper's queue, the counterpart of struct cpu_stop_work. The caller owns it and keeps it
// unchanged until its function has begun; from then on it may be used again.
template <class P>
class BasicWork {
public:
  // Runs on the participant's thread; an exception was caught inside.
  using Function = Invocation (*)(void* arg, CpuId cpu) noexcept;

  BasicWork() noexcept = default;
  BasicWork(const BasicWork&) = delete;
  BasicWork& operator=(const BasicWork&) = delete;

  void set(Function function, void* arg, BasicDone<P>* done) noexcept {
    function_ = function;
    arg_ = arg;
    done_ = done;
  }

private:
  friend class BasicStopper<P>;

  Function function_ = nullptr;
  void* arg_ = nullptr;
  BasicDone<P>* done_ = nullptr; // null: nobody waits
  BasicWork* next_ = nullptr;    // under the stopper's lock
  // Written under the stopper's lock; read without it by set-up code that checks for reuse.
  typename P::template Atomic<uint32_t> queued_{0};
};

} // namespace stopvisor::stopper
