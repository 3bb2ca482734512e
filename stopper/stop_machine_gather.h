// SPDX-License-Identifier: Apache-2.0
// How a stop gets hold of its participants, gives up, and lets them leave: definitions behind stop_machine.h.
#pragma once

#include <algorithm>

namespace stopvisor::stopper {

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
    switch (slot->stopper->queue_or_catch(slot->work)) {
    case BasicStopper<P>::Found::kDisabled:
      stop.excuse_worker(*slot);
      break;
    case BasicStopper<P>::Found::kAtRest:
      stop.catch_worker(*slot);
      break;
    case BasicStopper<P>::Found::kBusy:
      slot->kicked_ns = now_ns();
      kick_.kick(slot->cpu);
      break;
    }
  }
}

// When the missing are to be lifted, by what stops were like of late.
template <class P>
TimePoint BasicStopMachine<P>::patience(size_t participants) noexcept {
  const uint32_t late = late_.load(std::memory_order_relaxed); // a guess
  if (late != 0)
    late_.store(late - 1, std::memory_order_relaxed);
  return P::now() + (late != 0 ? kLiftSoonAfter + kLiftLaterEach * static_cast<int64_t>(participants) : kLiftAfter);
}

// Whether one or two are to be lifted with the kick, and not only when they are late: nobody else leaves a
// processor for them, and to lift one costs less than a timer.
template <class P>
bool BasicStopMachine<P>::take_late_few() noexcept {
  const uint32_t late = late_few_.load(std::memory_order_relaxed); // a guess
  if (late != 0)
    late_few_.store(late - 1, std::memory_order_relaxed);
  return late != 0;
}

// RETURNS: whether a lift was refused.
template <class P>
bool BasicStopMachine<P>::lift_missing(std::span<Slot* const> slots, std::atomic<uint32_t>& late) noexcept {
  bool refused = false;
  for (Slot* slot : slots)
    if (!slot->lifted && !slot->at_rest && BasicStopper<P>::in_use(slot->work)) {
      late.store(kLateMemory, std::memory_order_relaxed); // a guess
      const Kick::Lift lift = kick_.lift(slot->cpu);
      slot->lifted = slot->raised = lift == Kick::Lift::kLifted;
      refused = refused || lift == Kick::Lift::kRefused;
    }
  return refused;
}

// RETURNS: how many were kicked once more.
template <class P>
uint32_t BasicStopMachine<P>::kick_missing(std::span<Slot* const> slots) noexcept {
  uint32_t kicks = 0;
  for (const Slot* slot : slots)
    if (!slot->at_rest && BasicStopper<P>::in_use(slot->work)) {
      ++kicks;
      kick_.kick(slot->cpu);
    }
  return kicks;
}

// Those who were let go but have not left wait for a processor, quite likely behind vCPUs that have left and spin
// in the guest: without a lift the next stop would wait for their turns to end.
template <class P>
void BasicStopMachine<P>::hurry_out(MultiStop& stop, TimePoint deadline) noexcept {
  if (stop.state() != State::kExit)
    return;
  for (const auto slots : {stop.plan().vcpus, stop.plan().workers})
    for (Slot* slot : slots)
      if (!slot->excused) // who has left already is not lifted any more
        slot->raised = kick_.lift(slot->cpu) == Kick::Lift::kLifted;
  stop.wait_while(State::kExit, deadline);
  restore_lifted(stop.plan().vcpus);
  restore_lifted(stop.plan().workers);
}

template <class P>
void BasicStopMachine<P>::restore_lifted(std::span<Slot* const> slots) noexcept {
  for (Slot* slot : slots)
    if (std::exchange(slot->raised, false))
      kick_.restore(slot->cpu);
}

template <class P>
MultiStopState BasicStopMachine<P>::await_moving_on(MultiStop& stop, State from, TimePoint deadline) noexcept {
  const auto slots = from == State::kPrepare ? stop.plan().vcpus : stop.plan().workers; // who acknowledges `from`
  if (const State after = stop.wait_while(from, std::min(patience(slots.size()), deadline)); after != from)
    return after;
  stop.lift_refused |= lift_missing(slots, late_);
  for (;;) {
    if (const State after = stop.wait_while(from, next_look(deadline)); after != from)
      return after;
    if (deadline != kForever && P::now() >= deadline)
      return from;
    stop.rekicks += kick_missing(slots);
  }
}

// Waits until the works of all `slots` were executed; `done` counts them. RETURNS: those whose works were taken
// back as the deadline passed: they have not begun, and will not.
template <class P>
CpuMask BasicStopMachine<P>::await_works(std::span<Slot* const> slots, BasicDone<P>& done,
                                         TimePoint deadline) noexcept {
  CpuMask stragglers;
  const bool few = slots.size() <= kFew;
  const bool at_once = few && take_late_few();
  if (at_once)
    for (Slot* slot : slots)
      slot->lifted = slot->raised = kick_.lift(slot->cpu) == Kick::Lift::kLifted;
  const TimePoint patient = few ? P::now() + kLiftAfter : patience(slots.size());
  if (done.wait_until(std::min(patient, deadline))) {
    if (at_once)
      restore_lifted(slots);
    return stragglers;
  }
  lift_missing(slots, few ? late_few_ : late_);
  while (!done.wait_until(next_look(deadline))) {
    if (deadline == kForever || P::now() < deadline) {
      kick_missing(slots);
      continue;
    }
    for (Slot* slot : slots)
      if (slot->stopper->cancel(slot->work)) {
        stragglers.set(slot->cpu);
        done.signal(0, false);
      }
    done.wait_until(kForever); // whoever is left has begun
    break;
  }
  restore_lifted(slots);
  return stragglers;
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
  restore_lifted(stop.plan().vcpus);
  restore_lifted(stop.plan().workers);
}

} // namespace stopvisor::stopper
