// SPDX-License-Identifier: Apache-2.0
// The stop machine from construction to close, its participants and its report: definitions behind stop_machine.h.
#pragma once

#include <algorithm>

namespace stopvisor::stopper {

template <class P>
BasicStopMachine<P>::BasicStopMachine(CpuId possible_cpus, Kick& kick, CpuId possible_workers)
    : possible_cpus_(std::min(possible_cpus, kMaxCpus - std::min(possible_workers, kMaxCpus))),
      possible_participants_(possible_cpus_ + std::min(possible_workers, kMaxCpus)), kick_(kick),
      stoppers_(std::make_unique<BasicStopper<P>[]>(possible_participants_)),
      participants_(std::make_unique<ThreadMark[]>(possible_participants_)) {
  for (WideStop& wide : wides_) {
    wide.slots = std::make_unique<Slot[]>(possible_participants_);
    wide.vcpus.reserve(possible_cpus_);
    wide.workers.reserve(possible_participants_ - possible_cpus_);
  }
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
void BasicStopMachine<P>::bind_thread(CpuId cpu) noexcept {
  participants_[cpu] = {.machine = this, .participant = cpu};
  Marks::put(participants_[cpu]);
}

template <class P>
void BasicStopMachine<P>::unbind_thread() noexcept {
  if (ThreadMark* const mark = Marks::find(this))
    Marks::take(*mark);
}

template <class P>
void BasicStopMachine<P>::park(CpuId cpu) noexcept {
  // A work is queued either before the flag changed, and run here as a participant's, or not at all.
  while (!stoppers_[cpu].disable_if_idle())
    run_works(cpu);
}

template <class P>
void BasicStopMachine<P>::retire(CpuId cpu) noexcept {
  while (!stoppers_[cpu].retire_if_idle())
    run_works(cpu);
}

template <class P>
std::expected<void, StopError> BasicStopMachine<P>::unpark(CpuId cpu, TimePoint deadline) {
  if (auto allowed = refuse(); !allowed)
    return allowed;
  if (!hotplug_.write_lock_until(deadline))
    return std::unexpected(StopError{StopErrc::kDeadline});
  auto done = unpark_cpuslocked(cpu);
  hotplug_.write_unlock();
  return done;
}

template <class P>
std::expected<void, StopError> BasicStopMachine<P>::unpark_cpuslocked(CpuId cpu) {
  if (cpu >= possible_participants_)
    return std::unexpected(StopError{StopErrc::kNoSuchCpu});
  // A thread that has left for good never comes to a work: nothing may be queued for it. The stopper's lock decides
  // between its retire() and us.
  if (!stoppers_[cpu].enable())
    return std::unexpected(StopError{StopErrc::kEnded});
  initialized_.store(1, std::memory_order_release); // I1, pairs with stop_machine_cpuslocked()
  return {};
}

template <class P>
std::expected<void, StopError> BasicStopMachine<P>::refuse(CpuId but) const noexcept {
  if (Marks::find(this, but) != nullptr)
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
  // exit, too, is acknowledged may a barrier and its slots be used again (cloud-hypervisor #7397). Until then
  // there is the other barrier. Whoever has left the stop before the last one has acknowledged all of it, unless
  // the last one was without it.
  WideStop* const next = wide_->stop.state() == State::kNone ? wide_ : &wides_[wide_ == wides_.data() ? 1 : 0];
  if (wait == Wait::kNo && next->stop.state() == State::kExit) {
    facility_.unlock();
    return std::unexpected(StopError{StopErrc::kBusy});
  }
  hurry_out(next->stop, deadline);
  if (next->stop.wait_while(State::kExit, deadline) == State::kExit) {
    facility_.unlock();
    return std::unexpected(StopError{StopErrc::kDeadline});
  }
  wide_ = next;
  const BasicLockGuard<P> guard(report_lock_);
  settle_report(*wide_); // before it is written anew
  return {};
}

// CONTEXT: `wide` has ended.
template <class P>
void BasicStopMachine<P>::settle_report(const WideStop& wide) noexcept {
  if (wide.sequence > report_.sequence)
    wide.fill(report_); // no allocation: the vector's capacity is reserved
}

template <class P>
void BasicStopMachine<P>::WideStop::fill(StopReport& report) const {
  report.sequence = sequence;
  report.shared = shared;
  report.requested_ns = requested_ns;
  report.begun_ns = begun_ns;
  stop.fill(report);
}

template <class P>
StopReport BasicStopMachine<P>::last_report() {
  for (;;) {
    WideStop* leaving = nullptr;
    {
      const BasicLockGuard<P> guard(report_lock_);
      for (WideStop& wide : wides_) {
        if (wide.sequence <= report_.sequence)
          continue;
        const State state = wide.stop.state();
        if (state == State::kNone)
          settle_report(wide);
        else if (state == State::kExit)
          leaving = &wide;
      }
      if (leaving == nullptr || leaving->sequence < report_.sequence)
        return report_;
    }
    leaving->stop.wait_while(State::kExit, kForever);
  }
}

template <class P>
void BasicStopMachine<P>::arm(const typename MultiStop::Plan& plan, int64_t requested_ns) noexcept {
  const BasicLockGuard<P> guard(report_lock_); // against last_report()
  wide_->sequence = ++sequence_;
  wide_->shared = 0;
  wide_->requested_ns = requested_ns;
  wide_->begun_ns = now_ns();
  wide_->stop.arm(plan);
}

template <class P>
void BasicStopMachine<P>::prepare_slot(Slot& slot, MultiStop& stop, CpuId cpu, bool active) noexcept {
  slot.stop = &stop;
  slot.stopper = &stoppers_[cpu];
  slot.cpu = cpu;
  slot.worker = cpu >= possible_cpus_;
  slot.active = active;
  slot.at_rest = false;
  slot.came.store(0, std::memory_order_relaxed); // published with the work, by the stopper's lock
  slot.excused = false;
  slot.lifted = slot.raised = false;
  slot.activity = 0;
  slot.kicked_ns = slot.out_ns = slot.held_ns = slot.ran_ns = slot.released_ns = 0;
  slot.result = 0;
  slot.work.set(slot.worker ? &MultiStop::worker_work : &MultiStop::vcpu_work, &slot, nullptr);
}

template <class P>
void BasicStopMachine<P>::choose_vcpus(const CpuMask& cpus, const CpuMask& active) noexcept {
  wide_->vcpus.clear();
  wide_->workers.clear();
  cpus.for_each([&](CpuId cpu) {
    prepare_slot(wide_->slots[cpu], wide_->stop, cpu, active.test(cpu));
    wide_->vcpus.push_back(&wide_->slots[cpu]);
  });
}

template <class P>
void BasicStopMachine<P>::choose_workers() noexcept {
  for (CpuId cpu = possible_cpus_; cpu < possible_participants_; ++cpu)
    if (stoppers_[cpu].enabled()) {
      prepare_slot(wide_->slots[cpu], wide_->stop, cpu, false);
      wide_->workers.push_back(&wide_->slots[cpu]);
    }
}

} // namespace stopvisor::stopper
