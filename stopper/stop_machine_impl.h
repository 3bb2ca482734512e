// SPDX-License-Identifier: Apache-2.0
// The definitions behind stop_machine.h; nothing else includes this file.
#pragma once

#include <algorithm>

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
BasicStopMachine<P>::BasicStopMachine(CpuId possible_cpus, Kick& kick, CpuId possible_workers)
    : possible_cpus_(std::min(possible_cpus, kMaxCpus)),
      possible_participants_(std::min(possible_cpus_ + possible_workers, kMaxCpus)), kick_(kick),
      stoppers_(std::make_unique<BasicStopper<P>[]>(possible_participants_)),
      slots_(std::make_unique<Slot[]>(possible_participants_)) {
  vcpu_slots_.reserve(possible_cpus_);
  worker_slots_.reserve(possible_participants_ - possible_cpus_);
  report_.participants.reserve(possible_participants_);
}

template <class P>
BasicStopMachine<P>::~BasicStopMachine() = default;

template <class P>
CpuMask BasicStopMachine<P>::online() const noexcept {
  CpuMask mask;
  for (CpuId cpu = 0; cpu < possible_cpus_; ++cpu)
    if (stoppers_[cpu].enabled())
      mask.set(cpu);
  return mask;
}

// ---- participants ---------------------------------------------------------------------------------------------

template <class P>
void BasicStopMachine<P>::bind_thread(CpuId /*cpu*/) noexcept {
  mark_thread();
}

template <class P>
void BasicStopMachine<P>::unbind_thread() noexcept {
  unmark_thread();
}

template <class P>
void BasicStopMachine<P>::park(CpuId cpu) noexcept {
  // A work is queued either before the flag changed, and run here as a participant's, or not at all.
  while (!stoppers_[cpu].disable_if_idle())
    run_works(cpu);
}

template <class P>
std::expected<void, StopError> BasicStopMachine<P>::unpark(CpuId cpu, TimePoint deadline) {
  if (auto allowed = refuse(); !allowed)
    return allowed;
  if (cpu >= possible_participants_)
    return std::unexpected(StopError{StopErrc::kNoSuchCpu});
  if (!hotplug_.write_lock_until(deadline))
    return std::unexpected(StopError{StopErrc::kDeadline});
  stoppers_[cpu].enable();
  initialized_.store(1, std::memory_order_release); // I1, pairs with stop_machine_owned()
  hotplug_.write_unlock();
  return {};
}

template <class P>
std::expected<void, StopError> BasicStopMachine<P>::refuse() const noexcept {
  if (P::thread_slot() == this)
    return std::unexpected(StopError{StopErrc::kWouldDeadlock});
  if (closed_.load(std::memory_order_acquire) != 0) // C1
    return std::unexpected(StopError{StopErrc::kEnded});
  return {};
}

// ---- the wide-stop facility ---------------------------------------------------------------------------------

template <class P>
std::expected<void, StopError> BasicStopMachine<P>::take_facility(TimePoint deadline,
                                                                  Wait wait) noexcept NO_THREAD_SAFETY_ANALYSIS {
  const bool taken = wait == Wait::kYes ? facility_.lock_until(deadline) : facility_.try_lock();
  if (!taken)
    return std::unexpected(StopError{wait == Wait::kYes ? StopErrc::kDeadline : StopErrc::kBusy});
  // The last stop may have been released by a thread that did not wait for everybody to leave: only when the
  // exit, too, is acknowledged may the slots be used again (cloud-hypervisor #7397).
  hurry_out(deadline);
  if (wide_.wait_while(State::kExit, deadline) == State::kExit) {
    facility_.unlock();
    return std::unexpected(StopError{StopErrc::kDeadline});
  }
  const BasicLockGuard<P> guard(report_lock_);
  settle_report();
  return {};
}

template <class P>
void BasicStopMachine<P>::settle_report() noexcept {
  if (report_.sequence == sequence_)
    return;
  report_.sequence = sequence_;
  fill_current(report_); // no allocation: the vector's capacity is reserved
}

template <class P>
void BasicStopMachine<P>::fill_current(StopReport& report) const {
  report.sequence = sequence_;
  report.shared = shared_;
  report.requested_ns = requested_ns_;
  report.begun_ns = begun_ns_;
  wide_.fill(report);
}

template <class P>
StopReport BasicStopMachine<P>::last_report() {
  for (;;) {
    State state;
    {
      const BasicLockGuard<P> guard(report_lock_);
      state = wide_.state();
      if (state == State::kNone)
        settle_report();
      if (report_.sequence == sequence_ || state != State::kExit)
        return report_;
    }
    wide_.wait_while(State::kExit, kForever); // they are leaving
  }
}

template <class P>
void BasicStopMachine<P>::arm(const typename MultiStop::Plan& plan, int64_t requested_ns) noexcept {
  const BasicLockGuard<P> guard(report_lock_); // against last_report()
  ++sequence_;
  shared_ = 0;
  requested_ns_ = requested_ns;
  begun_ns_ = now_ns();
  wide_.arm(plan);
}

template <class P>
void BasicStopMachine<P>::prepare_slot(Slot& slot, MultiStop& stop, CpuId cpu, bool active) noexcept {
  slot.stop = &stop;
  slot.stopper = &stoppers_[cpu];
  slot.cpu = cpu;
  slot.worker = cpu >= possible_cpus_;
  slot.active = active;
  slot.excused = false;
  slot.lifted = slot.raised = false;
  slot.activity = 0;
  slot.kicked_ns = slot.out_ns = slot.held_ns = slot.ran_ns = slot.released_ns = 0;
  slot.result = 0;
  slot.work.set(slot.worker ? &MultiStop::worker_work : &MultiStop::vcpu_work, &slot, nullptr);
}

template <class P>
void BasicStopMachine<P>::choose_vcpus(const CpuMask& cpus, const CpuMask& active) noexcept {
  vcpu_slots_.clear();
  worker_slots_.clear();
  cpus.for_each([&](CpuId cpu) {
    prepare_slot(slots_[cpu], wide_, cpu, active.test(cpu));
    vcpu_slots_.push_back(&slots_[cpu]);
  });
}

template <class P>
void BasicStopMachine<P>::choose_workers() noexcept {
  for (CpuId cpu = possible_cpus_; cpu < possible_participants_; ++cpu)
    if (stoppers_[cpu].enabled()) {
      prepare_slot(slots_[cpu], wide_, cpu, false);
      worker_slots_.push_back(&slots_[cpu]);
    }
}

// ---- gathering ------------------------------------------------------------------------------------------------

// queue_stop_cpus_work(). Everything is queued before anybody is kicked: a vCPU thread that is woken may preempt
// us, and the others would wait in the barrier for a work that is not queued yet.
template <class P>
void BasicStopMachine<P>::queue_all(MultiStop& stop) noexcept {
  // relaxed: stop_two_cpus() reads it under the stoppers' locks, and whoever finds one of our works on a stopper
  // took that stopper's lock after us, so it sees the 1 (or the later 0, when everything is queued).
  stop_cpus_in_progress_.store(1, std::memory_order_relaxed);
  for (Slot* slot : stop.plan().vcpus)
    if (!slot->stopper->queue(slot->work))
      stop.excuse(*slot);
  stop_cpus_in_progress_.store(0, std::memory_order_release); // Q1: queue_two() waits for it
  for (Slot* slot : stop.plan().vcpus)
    if (!slot->excused) {
      slot->kicked_ns = now_ns();
      kick_.kick(slot->cpu);
    }
}

template <class P>
void BasicStopMachine<P>::queue_workers(MultiStop& stop) noexcept {
  for (Slot* slot : stop.plan().workers) {
    slot->kicked_ns = now_ns();
    if (slot->stopper->queue(slot->work))
      kick_.kick(slot->cpu);
    else
      stop.excuse_worker(*slot);
  }
}

template <class P>
bool BasicStopMachine<P>::lift_missing(MultiStop& stop) noexcept {
  bool anybody = false;
  for (const auto slots : {stop.plan().vcpus, stop.plan().workers})
    for (Slot* slot : slots)
      if (!slot->lifted && BasicStopper<P>::in_use(slot->work)) {
        anybody = true;
        const Kick::Lift lift = kick_.lift(slot->cpu);
        slot->lifted = slot->raised = lift == Kick::Lift::kLifted;
        stop.lift_refused = stop.lift_refused || lift == Kick::Lift::kRefused;
      }
  return anybody;
}

// Those who were let go but have not left wait for a processor, quite likely behind vCPUs that have left and spin
// in the guest: without a lift the next stop would wait for their turns to end.
template <class P>
void BasicStopMachine<P>::hurry_out(TimePoint deadline) noexcept {
  if (wide_.state() != State::kExit)
    return;
  for (const auto slots : {wide_.plan().vcpus, wide_.plan().workers})
    for (Slot* slot : slots)
      if (!slot->excused) // who has left already is not lifted any more
        slot->raised = kick_.lift(slot->cpu) == Kick::Lift::kLifted;
  wide_.wait_while(State::kExit, deadline);
  restore_lifted(wide_);
}

template <class P>
void BasicStopMachine<P>::restore_lifted(MultiStop& stop) noexcept {
  for (const auto slots : {stop.plan().vcpus, stop.plan().workers})
    for (Slot* slot : slots)
      if (std::exchange(slot->raised, false))
        kick_.restore(slot->cpu);
}

template <class P>
MultiStopState BasicStopMachine<P>::await_moving_on(MultiStop& stop, State from, TimePoint deadline) noexcept {
  // late_ belongs to the wide stops, which are serialised; a stop of two vCPUs does without it.
  const bool wide = &stop == &wide_;
  const TimePoint patience = P::now() + (wide && late_ != 0 ? kLiftSoonAfter : kLiftAfter);
  const State after = stop.wait_while(from, std::min(patience, deadline));
  if (wide && late_ != 0)
    --late_;
  if (after != from)
    return after;
  if (lift_missing(stop) && wide)
    late_ = kLateMemory;
  for (;;) {
    if (const State state = stop.wait_while(from, next_look(deadline)); state != from)
      return state;
    if (deadline != kForever && P::now() >= deadline)
      return from;
    for (const auto slots : {stop.plan().vcpus, stop.plan().workers})
      for (const Slot* slot : slots)
        if (BasicStopper<P>::in_use(slot->work)) {
          ++stop.rekicks;
          kick_.kick(slot->cpu);
        }
  }
}

// Gives up, unless the last one came after all (then stop.aborted() stays false). Takes back the works of those
// who have not come; whoever has begun its work finds the gates open, and leaves in bounded time.
template <class P>
void BasicStopMachine<P>::call_off(MultiStop& stop, State from) noexcept {
  if (!stop.abort(from))
    return;
  for (const auto slots : {stop.plan().vcpus, stop.plan().workers})
    for (Slot* slot : slots)
      if (slot->stopper->cancel(slot->work)) {
        stop.stragglers.set(slot->cpu);
        stop.disown(*slot);
      }
}

// Queues, kicks and waits until the state is past DisableIrq, or the stop was aborted.
// RETURNS: false where it was aborted. The coordinator still owes its acknowledgement of Exit.
template <class P>
bool BasicStopMachine<P>::gather(MultiStop& stop, TimePoint deadline) noexcept {
  queue_all(stop);
  stop.ack(State::kPrepare);
  if (await_moving_on(stop, State::kPrepare, deadline) == State::kPrepare)
    call_off(stop, State::kPrepare);
  if (stop.plan().workers.empty() || stop.aborted())
    return !stop.aborted();
  queue_workers(stop);
  if (await_moving_on(stop, State::kDisableIrq, deadline) == State::kDisableIrq)
    call_off(stop, State::kDisableIrq);
  return !stop.aborted();
}

// The coordinator leaves, and waits for all others to have left.
template <class P>
void BasicStopMachine<P>::leave(MultiStop& stop) noexcept {
  stop.ack(State::kExit);
  for (State state = stop.state(); state != State::kNone; state = stop.state())
    stop.wait_while(state, kForever);
  restore_lifted(stop);
}

// ---- stops of one and two ------------------------------------------------------------------------------------

template <class P>
std::expected<int, StopError> BasicStopMachine<P>::stop_one_cpu(CpuId cpu, StopFn fn, const StopOptions& options) {
  if (auto allowed = refuse(); !allowed)
    return std::unexpected(allowed.error());
  BasicDone<P> done(1);
  OneShot shot{fn, P::now() + options.budget};
  Work work;
  work.set(&OneShot::run, &shot, &done);
  if (cpu >= possible_participants_ || !stoppers_[cpu].queue(work))
    return std::unexpected(StopError{StopErrc::kNoSuchCpu, CpuMask::of(cpu)});
  kick_.kick(cpu);
  for (;;) {
    if (done.wait_until(next_look(options.deadline)))
      break;
    if (options.deadline != kForever && P::now() >= options.deadline) {
      if (stoppers_[cpu].cancel(work))
        return std::unexpected(StopError{StopErrc::kDeadline, CpuMask::of(cpu)});
      done.wait_until(kForever); // it has begun
      break;
    }
    if (BasicStopper<P>::in_use(work))
      kick_.kick(cpu);
  }
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

// ---- wide stops
// --------------------------------------------------------------------------------------------------

template <class P>
std::expected<StopOutcome, StopError> BasicStopMachine<P>::stop_cpus_owned(const CpuMask& cpus, StopFn fn,
                                                                           const StopOptions& options) {
  Each each{{fn, P::now() + options.budget}, slots_.get()};
  BasicDone<P> done(cpus.count());
  CpuMask queued;
  stop_cpus_in_progress_.store(1, std::memory_order_relaxed); // see queue_all()
  cpus.for_each([&](CpuId cpu) {
    if (cpu < possible_cpus_) {
      slots_[cpu].result = 0;
      slots_[cpu].work.set(&Each::run, &each, &done);
      if (stoppers_[cpu].queue(slots_[cpu].work)) {
        queued.set(cpu);
        return;
      }
    }
    done.signal(0, false); // offline: completed at once
  });
  stop_cpus_in_progress_.store(0, std::memory_order_release); // Q1
  if (queued.empty())
    return std::unexpected(StopError{StopErrc::kNoSuchCpu, cpus});
  queued.for_each([&](CpuId cpu) { kick_.kick(cpu); });
  CpuMask stragglers;
  for (bool late = false; !done.done();) {
    if (!late && done.wait_until(next_look(options.deadline)))
      break;
    late = options.deadline != kForever && P::now() >= options.deadline;
    queued.for_each([&](CpuId cpu) {
      if (!BasicStopper<P>::in_use(slots_[cpu].work))
        return;
      if (!late) {
        kick_.kick(cpu);
      } else if (stoppers_[cpu].cancel(slots_[cpu].work)) {
        stragglers.set(cpu);
        done.signal(0, false);
      }
    });
    if (late)
      done.wait_until(kForever); // whoever is left has begun
  }
  if (!stragglers.empty())
    return std::unexpected(StopError{StopErrc::kDeadline, stragglers});
  if (done.threw())
    return std::unexpected(StopError{StopErrc::kCallbackThrew});
  StopOutcome outcome{done.result(), {}};
  queued.for_each([&](CpuId cpu) {
    if (slots_[cpu].result != 0)
      outcome.nonzero.emplace_back(cpu, slots_[cpu].result);
  });
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
  arm({vcpu_slots_, worker_slots_, &fn, local_runs, budget_end}, requested_ns);
  bool ran = local_runs;
  Invocation own{0, false};
  if (gather(wide_, options.deadline) && local_runs) {
    wide_.wait_while(State::kDisableIrq, kForever); // passed through where there are no workers
    StopContext context{local, budget_end};
    mark_thread();
    own = invoke(fn, context);
    unmark_thread();
    wide_.collect(own);
    wide_.ack(State::kRun);
  }
  leave(wide_);
  std::expected<StopOutcome, StopError> outcome = StopOutcome{wide_.result(), {}};
  for (const Slot* slot : vcpu_slots_) {
    ran = ran || (slot->active && !slot->excused);
    if (slot->result != 0)
      outcome->nonzero.emplace_back(slot->cpu, slot->result);
  }
  if (own.result != 0)
    outcome->nonzero.emplace_back(local, own.result);
  if (wide_.aborted())
    outcome = std::unexpected(StopError{StopErrc::kDeadline, wide_.stragglers});
  else if (wide_.threw())
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
    // Nobody can run guest code yet: fn has the machine for itself.
    StopContext context{kMaxCpus, P::now() + options.budget};
    mark_thread();
    const Invocation invocation = invoke(fn, context);
    unmark_thread();
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
  if (auto allowed = refuse(); !allowed)
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
    arm({vcpu_slots_, worker_slots_, nullptr, true, P::now() + options.budget}, requested_ns);
    if (gather(wide_, options.deadline)) {
      wide_.wait_while(State::kDisableIrq, kForever); // passed through where there are no workers
      mark_thread();
      return Stop(*this);
    }
    leave(wide_);
    stop = std::unexpected(StopError{StopErrc::kDeadline, wide_.stragglers});
  }
  drop_facility();
  hotplug_.read_unlock();
  return stop;
}

template <class P>
void BasicStopMachine<P>::release_stop() noexcept {
  unmark_thread();
  restore_lifted(wide_); // while they are held: nobody goes back to the guest with a lifted priority
  wide_.ack(State::kRun);
  wide_.ack(State::kExit);
  drop_facility();
  hotplug_.read_unlock();
}

} // namespace stopvisor::stopper
