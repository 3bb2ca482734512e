// SPDX-License-Identifier: Apache-2.0
// Stops of many: stop_cpus(), stop_machine() and hold(). Definitions behind stop_machine.h.
#pragma once

#include <utility>

namespace stopvisor::stopper {

// The same on several, each result kept beside its participant.
template <class P>
struct BasicStopMachine<P>::Each {
  OneShot shot;
  Slot* slots;

  static Invocation run(void* arg, CpuId cpu) noexcept {
    auto& self = *static_cast<Each*>(arg);
    const Invocation invocation = OneShot::run(&self.shot, cpu);
    self.slots[cpu].result = invocation.result; // ours alone until the work's done is signalled
    return invocation;
  }
};

template <class P>
std::expected<StopOutcome, StopError> BasicStopMachine<P>::stop_cpus_owned(const CpuMask& cpus, StopFn fn,
                                                                           const StopOptions& options) {
  Each each{{fn, P::now() + options.budget}, wide_->slots.get()};
  BasicDone<P> done(cpus.count());
  wide_->vcpus.clear();
  stop_cpus_in_progress_.store(1, std::memory_order_relaxed); // see queue_all()
  cpus.for_each([&](CpuId cpu) {
    if (cpu < possible_cpus_) {
      Slot& slot = wide_->slots[cpu];
      prepare_slot(slot, wide_->stop, cpu, true);
      slot.work.set(&Each::run, &each, &done);
      if (slot.stopper->queue(slot.work)) {
        wide_->vcpus.push_back(&slot);
        return;
      }
    }
    done.signal(0, false); // offline: completed at once
  });
  stop_cpus_in_progress_.store(0, std::memory_order_release); // Q1
  if (wide_->vcpus.empty())
    return std::unexpected(StopError{StopErrc::kNoSuchCpu, cpus});
  for (const Slot* slot : wide_->vcpus)
    kick_.kick(slot->cpu);
  if (const CpuMask stragglers = await_works(wide_->vcpus, done, options.deadline); !stragglers.empty())
    return std::unexpected(StopError{StopErrc::kDeadline, stragglers});
  if (done.threw())
    return std::unexpected(StopError{StopErrc::kCallbackThrew});
  StopOutcome outcome{done.result(), {}};
  for (const Slot* slot : wide_->vcpus)
    if (slot->result != 0)
      outcome.nonzero.emplace_back(slot->cpu, slot->result);
  return outcome;
}

template <class P>
std::expected<StopOutcome, StopError> BasicStopMachine<P>::stop_cpus(const CpuMask& cpus, StopFn fn,
                                                                     const StopOptions& options) {
  if (auto allowed = refuse(); !allowed)
    return std::unexpected(allowed.error());
  if (cpus.empty())
    return std::unexpected(StopError{StopErrc::kEmptyMask});
  if (auto taken = take_facility(options.deadline, Wait::kYes); !taken)
    return std::unexpected(taken.error());
  auto outcome = stop_cpus_owned(cpus, fn, options);
  drop_facility();
  return outcome;
}

template <class P>
std::expected<StopOutcome, StopError> BasicStopMachine<P>::try_stop_cpus(const CpuMask& cpus, StopFn fn,
                                                                         const StopOptions& options) {
  if (auto allowed = refuse(); !allowed)
    return std::unexpected(allowed.error());
  if (cpus.empty())
    return std::unexpected(StopError{StopErrc::kEmptyMask});
  if (auto taken = take_facility(options.deadline, Wait::kNo); !taken)
    return std::unexpected(taken.error());
  auto outcome = stop_cpus_owned(cpus, fn, options);
  drop_facility();
  return outcome;
}

template <class P>
std::expected<StopOutcome, StopError>
BasicStopMachine<P>::stop_machine_owned(StopFn fn, const CpuMask* active, const StopOptions& options, CpuId local) {
  const int64_t requested_ns = now_ns();
  if (auto taken = take_facility(options.deadline, Wait::kYes); !taken)
    return std::unexpected(taken.error());
  const CpuMask cpus = online();
  const CpuMask runners = active != nullptr ? *active : CpuMask::of(cpus.first() < kMaxCpus ? cpus.first() : local);
  const bool local_runs = local < kMaxCpus && runners.test(local);
  if (!local_runs && (runners & cpus).empty()) {
    drop_facility();
    const bool none_named = active != nullptr && active->empty();
    return std::unexpected(StopError{none_named ? StopErrc::kEmptyMask : StopErrc::kNoSuchCpu});
  }
  choose_vcpus(cpus, runners);
  choose_workers();
  const TimePoint budget_end = P::now() + options.budget;
  arm({wide_->vcpus, wide_->workers, &fn, local_runs, budget_end}, requested_ns);
  bool ran = local_runs;
  Invocation own{0, false};
  if (gather(wide_->stop, options.deadline) && local_runs) {
    wide_->stop.wait_while(State::kDisableIrq, kForever); // passed through where there are no workers
    StopContext context{local, budget_end};
    const InsideCallback inside(this);
    own = invoke(fn, context);
    wide_->stop.collect(own);
    wide_->stop.ack(State::kRun);
  }
  leave(wide_->stop);
  std::expected<StopOutcome, StopError> outcome = StopOutcome{wide_->stop.result(), {}};
  for (const Slot* slot : wide_->vcpus) {
    ran = ran || (slot->active && !slot->excused);
    if (slot->result != 0)
      outcome->nonzero.emplace_back(slot->cpu, slot->result);
  }
  if (own.result != 0)
    outcome->nonzero.emplace_back(local, own.result);
  if (wide_->stop.aborted())
    outcome = std::unexpected(StopError{StopErrc::kDeadline, wide_->stop.stragglers});
  else if (wide_->stop.threw())
    outcome = std::unexpected(StopError{StopErrc::kCallbackThrew});
  else if (!ran)
    outcome = std::unexpected(StopError{StopErrc::kNoSuchCpu}); // they went offline under our hands
  drop_facility();
  return outcome;
}

template <class P>
std::expected<StopOutcome, StopError> BasicStopMachine<P>::stop_machine_cpuslocked(StopFn fn, const CpuMask* active,
                                                                                   const StopOptions& options) {
  if (auto allowed = refuse(); !allowed)
    return std::unexpected(allowed.error());
  if (initialized_.load(std::memory_order_acquire) == 0) { // I1
    // Nobody can run guest code yet, and nobody starts to while the caller has the hotplug lock: fn has the machine
    // for itself, once other callers' functions are done.
    if (auto taken = take_facility(options.deadline, Wait::kYes); !taken)
      return std::unexpected(taken.error());
    const Invocation invocation = [&] {
      const InsideCallback inside(this);
      StopContext context{kMaxCpus, P::now() + options.budget};
      return invoke(fn, context);
    }();
    drop_facility();
    if (invocation.threw)
      return std::unexpected(StopError{StopErrc::kCallbackThrew});
    return StopOutcome{invocation.result, {}};
  }
  return stop_machine_owned(fn, active, options, kMaxCpus);
}

template <class P>
std::expected<StopOutcome, StopError> BasicStopMachine<P>::stop_machine(StopFn fn, const CpuMask* active,
                                                                        const StopOptions& options) {
  if (auto allowed = refuse(); !allowed)
    return std::unexpected(allowed.error());
  if (!hotplug_.read_lock_until(options.deadline))
    return std::unexpected(StopError{StopErrc::kDeadline});
  auto outcome = stop_machine_cpuslocked(fn, active, options);
  hotplug_.read_unlock();
  return outcome;
}

template <class P>
std::expected<StopOutcome, StopError>
BasicStopMachine<P>::stop_machine_from_inactive_cpu(CpuId cpu, StopFn fn, const CpuMask* active,
                                                    const StopOptions& options) {
  if (auto allowed = refuse(cpu); !allowed)
    return std::unexpected(allowed.error());
  if (cpu >= possible_cpus_ || stoppers_[cpu].enabled())
    return std::unexpected(StopError{StopErrc::kNoSuchCpu, CpuMask::of(cpu)});
  return stop_machine_owned(fn, active, options, cpu);
}

template <class P>
std::expected<BasicStop<P>, StopError> BasicStopMachine<P>::hold(const StopOptions& options, const CpuMask* cpus) {
  const int64_t requested_ns = now_ns();
  if (auto allowed = refuse(); !allowed)
    return std::unexpected(allowed.error());
  if (cpus != nullptr && cpus->empty())
    return std::unexpected(StopError{StopErrc::kEmptyMask});
  if (!hotplug_.read_lock_until(options.deadline))
    return std::unexpected(StopError{StopErrc::kDeadline});
  if (auto taken = take_facility(options.deadline, Wait::kYes); !taken) {
    hotplug_.read_unlock();
    return std::unexpected(taken.error());
  }
  const CpuMask members = cpus != nullptr ? online() & *cpus : online();
  std::expected<Stop, StopError> stop = std::unexpected(StopError{StopErrc::kNoSuchCpu});
  if (cpus == nullptr || !members.empty()) {
    choose_vcpus(members, CpuMask{});
    if (cpus == nullptr)
      choose_workers();
    arm({wide_->vcpus, wide_->workers, nullptr, true, P::now() + options.budget}, requested_ns);
    if (gather(wide_->stop, options.deadline)) {
      wide_->stop.wait_while(State::kDisableIrq, kForever); // passed through where there are no workers
      Marks::put(hold_mark_);
      return Stop(*this);
    }
    leave(wide_->stop);
    stop = std::unexpected(StopError{StopErrc::kDeadline, wide_->stop.stragglers});
  }
  drop_facility();
  hotplug_.read_unlock();
  return stop;
}

template <class P>
void BasicStopMachine<P>::release_stop() noexcept {
  Marks::take(hold_mark_);
  restore_lifted(wide_->vcpus); // while they are held: nobody goes back to the guest with a lifted priority
  restore_lifted(wide_->workers);
  wide_->stop.ack(State::kRun);
  wide_->stop.ack(State::kExit);
  drop_facility();
  hotplug_.read_unlock();
}

} // namespace stopvisor::stopper
