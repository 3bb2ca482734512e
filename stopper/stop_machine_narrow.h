// SPDX-License-Identifier: Apache-2.0
// Stops of one and of two participants: definitions behind stop_machine.h.
#pragma once

#include <array>

namespace stopvisor::stopper {

// A callback that runs on one participant's thread without a barrier.
template <class P>
struct BasicStopMachine<P>::OneShot {
  const StopFn& fn;
  TimePoint budget_end;

  static Invocation run(void* arg, CpuId cpu) noexcept {
    const auto& self = *static_cast<const OneShot*>(arg);
    StopContext context{cpu, self.budget_end};
    return invoke(self.fn, context);
  }
};

template <class P>
std::expected<int, StopError> BasicStopMachine<P>::stop_one_cpu(CpuId cpu, StopFn fn, const StopOptions& options) {
  if (auto allowed = refuse(); !allowed)
    return std::unexpected(allowed.error());
  if (cpu >= possible_participants_)
    return std::unexpected(StopError{StopErrc::kNoSuchCpu});
  BasicDone<P> done(1);
  OneShot shot{fn, P::now() + options.budget};
  Slot slot;
  Slot* const only = &slot;
  slot.stopper = &stoppers_[cpu];
  slot.cpu = cpu;
  slot.work.set(&OneShot::run, &shot, &done);
  if (!slot.stopper->queue(slot.work))
    return std::unexpected(StopError{StopErrc::kNoSuchCpu, CpuMask::of(cpu)});
  kick_.kick(cpu);
  if (const CpuMask stragglers = await_works({&only, 1}, done, options.deadline); !stragglers.empty())
    return std::unexpected(StopError{StopErrc::kDeadline, stragglers});
  if (done.threw())
    return std::unexpected(StopError{StopErrc::kCallbackThrew});
  return done.result();
}

template <class P>
std::expected<void, StopError> BasicStopMachine<P>::stop_one_cpu_nowait(CpuId cpu, typename Work::Function function,
                                                                        void* arg, Work& work) {
  if (closed_.load(std::memory_order_acquire) != 0) // C1
    return std::unexpected(StopError{StopErrc::kEnded});
  if (BasicStopper<P>::in_use(work))
    return std::unexpected(StopError{StopErrc::kWorkInUse});
  work.set(function, arg, nullptr);
  if (cpu >= possible_participants_ || !stoppers_[cpu].queue(work))
    return std::unexpected(StopError{StopErrc::kNoSuchCpu, CpuMask::of(cpu)});
  kick_.kick(cpu);
  return {};
}

// cpu_stop_queue_two_works(): both or none, in the order of their numbers, and never between the works of a wide
// stop: else A could wait in one barrier for B while B waits in the other for A.
template <class P>
bool BasicStopMachine<P>::queue_two(Slot& one, Slot& two) noexcept NO_THREAD_SAFETY_ANALYSIS {
  Slot& lower = one.cpu < two.cpu ? one : two;
  Slot& upper = one.cpu < two.cpu ? two : one;
  for (;;) {
    lower.stopper->lock().lock();
    upper.stopper->lock().lock();
    const bool online = lower.stopper->enabled() && upper.stopper->enabled();
    // Read under both locks: a wide stop that has queued on one of the two but not on the other shows 1 here.
    const bool clear = stop_cpus_in_progress_.load(std::memory_order_acquire) == 0; // Q1
    if (online && clear)
      std::ignore = lower.stopper->queue_locked(lower.work) && upper.stopper->queue_locked(upper.work);
    upper.stopper->lock().unlock();
    lower.stopper->lock().unlock();
    if (!online || clear)
      return online;
    while (stop_cpus_in_progress_.load(std::memory_order_acquire) != 0) // Q1; bounded: queueing never blocks
      P::yield();
  }
}

template <class P>
std::expected<int, StopError> BasicStopMachine<P>::stop_two_cpus(CpuId cpu1, CpuId cpu2, StopFn fn,
                                                                 const StopOptions& options) {
  if (auto allowed = refuse(); !allowed)
    return std::unexpected(allowed.error());
  if (cpu1 >= possible_cpus_ || cpu2 >= possible_cpus_)
    return std::unexpected(StopError{StopErrc::kNoSuchCpu});
  if (cpu1 == cpu2)
    return std::unexpected(StopError{StopErrc::kSameCpu});
  MultiStop stop;
  std::array<Slot, 2> slots;
  prepare_slot(slots[0], stop, cpu1, true);
  prepare_slot(slots[1], stop, cpu2, false);
  std::array<Slot*, 2> members{&slots[0], &slots[1]};
  stop.arm({.vcpus = members, .workers = {}, .fn = &fn, .budget_end = P::now() + options.budget});
  if (!queue_two(slots[0], slots[1]))
    return std::unexpected(StopError{StopErrc::kNoSuchCpu});
  for (Slot& slot : slots)
    kick_.kick(slot.cpu);
  stop.ack(State::kPrepare);
  if (await_moving_on(stop, State::kPrepare, options.deadline) == State::kPrepare)
    call_off(stop, State::kPrepare);
  leave(stop);
  if (stop.aborted())
    return std::unexpected(StopError{StopErrc::kDeadline, stop.stragglers});
  if (stop.threw())
    return std::unexpected(StopError{StopErrc::kCallbackThrew});
  return stop.result();
}

} // namespace stopvisor::stopper
