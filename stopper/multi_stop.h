// SPDX-License-Identifier: Apache-2.0
// The multi-stop: the barrier that holds every participant, runs the callback and lets everybody go.
//
//   None ──▶ Prepare ──▶ DisableIrq ──▶ Run ──▶ Exit ──▶ None
//               └───────────────┴── abort ───────▲
//
//   state        who acknowledges it                          what it means
//   Prepare      every vCPU, and the coordinator              vCPUs come out of the guest, one by one
//   DisableIrq   every device worker                          no vCPU can make requests; workers come to rest
//   Run          whoever runs the callback                    nothing can write guest memory
//   Exit         everybody, the coordinator too               workers, then vCPUs, are let go
//
// The last one to acknowledge a state moves to the next, as in the kernel's kernel/stop_machine.c. Two things
// differ, for the reasons in docs/adr/0003-who-acknowledges.md: a state is acknowledged by those who have
// something to do in it (not by all, so that a stop costs two wake-ups a vCPU instead of four), and the
// coordinator, the thread that asked for the stop, is a participant as in stop_machine_from_inactive_cpu().
//
// INV1  state_ changes by compare-and-exchange alone, so of the last acknowledger and an abort one wins.
// INV2  The counters of all states are set before the first work is queued; none is ever set again.
// INV3  fn runs only between the exchange into Run and the acknowledgement of Run: all vCPUs and workers have
//       acknowledged then, and none of them passes its gate before Exit.
// INV4  Nobody touches a slot or this object after its acknowledgement of Exit, except to wake an address.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "stopper/report.h"
#include "stopper/stopper.h"

namespace stopvisor::stopper {

enum class MultiStopState : uint32_t {
  kNone,       // nobody is here; the object may be armed again
  kPrepare,    // awaiting every vCPU
  kDisableIrq, // awaiting every device worker
  kRun,        // the callback runs
  kExit,       // everybody leaves
};

template <class P>
class BasicMultiStop {
public:
  using State = MultiStopState;

  // One participant's place in the stop. Field by field, who may write it while the stop goes on:
  struct Slot {
    // the coordinator, before the work is queued:
    BasicMultiStop* stop = nullptr;
    BasicStopper<P>* stopper = nullptr;
    CpuId cpu = 0;
    bool worker = false;
    bool active = false; // runs the callback
    BasicWork<P> work;
    // the coordinator, any time:
    int64_t kicked_ns = 0;
    bool lifted = false; // it was late, and Kick::lift() did lift it
    bool raised = false; // Kick::restore() is owed
    bool at_rest =
        false; // a worker that was found at rest: the coordinator has acknowledged DisableIrq in its place
    bool excused = false; // found offline when the work was to be queued: not part of the stop
    // a worker: whoever is first, itself or the coordinator, acknowledges DisableIrq
    typename P::template Atomic<uint32_t> came{0};
    // the participant (a worker: who was first, up to held_ns), until it acknowledges Exit:
    int64_t out_ns = 0;
    uint32_t activity = 0;
    int64_t held_ns = 0;
    int64_t ran_ns = 0;
    int64_t released_ns = 0;
    int result = 0;
  };

  // Who takes part, and who runs what.
  struct Plan {
    std::span<Slot*> vcpus;
    std::span<Slot*> workers;
    const StopFn* fn = nullptr;    // null: the coordinator does what it likes in Run
    bool coordinator_runs = false; // the coordinator acknowledges Run as well
    TimePoint budget_end = kForever;
  };

  // None → Prepare. CONTEXT: the coordinator, while it owns this object (state None).
  void arm(const Plan& plan) noexcept {
    plan_ = plan;
    uint32_t active = 0;
    for (Slot* slot : plan.vcpus)
      active += slot->active ? 1 : 0;
    active_vcpus_ = active;
    const auto vcpus = static_cast<uint32_t>(plan.vcpus.size());
    const auto workers = static_cast<uint32_t>(plan.workers.size());
    // relaxed: published with the works by the stoppers' locks (INV2).
    set_acks(State::kPrepare, vcpus + 1);
    set_acks(State::kDisableIrq, workers);
    set_acks(State::kRun, active + (plan.coordinator_runs ? 1 : 0));
    set_acks(State::kExit, vcpus + workers + 2);               // + 2: the coordinator, and whoever opens the gates
    workers_in_.store(workers + 1, std::memory_order_relaxed); // + 1: whoever opens the gates
    run_gate_.store(kShut, std::memory_order_relaxed);
    worker_gate_.store(kShut, std::memory_order_relaxed);
    vcpu_gate_.store(kShut, std::memory_order_relaxed);
    result_.store(0, std::memory_order_relaxed);
    threw_.store(0, std::memory_order_relaxed);
    all_held_ns_ = exit_ns_ = left_ns_ = 0;
    aborted_ = false;
    rekicks = 0;
    lift_refused = false;
    stragglers = CpuMask{};
    state_.store(static_cast<uint32_t>(State::kPrepare), std::memory_order_release); // M1
  }

  // The work of a vCPU in a multi-stop (the kernel's multi_cpu_stop()); `arg` is its slot.
  static Invocation vcpu_work(void* arg, CpuId /*cpu*/) noexcept {
    Slot& slot = *static_cast<Slot*>(arg);
    return slot.stop->hold_vcpu(slot);
  }
  // The same for a device worker.
  static Invocation worker_work(void* arg, CpuId /*cpu*/) noexcept {
    Slot& slot = *static_cast<Slot*>(arg);
    slot.stop->hold_worker(slot);
    return {0, false};
  }

  // Acknowledges `state`; the last one moves on. CONTEXT: each participant once a state; see the table above.
  void ack(State state) noexcept {
    // acq_rel: the last one has seen all that the others did before they acknowledged (M2).
    if (acks(state).fetch_sub(1, std::memory_order_acq_rel) == 1)
      advance(state);
  }

  // Takes a vCPU out that was found offline when it was to be queued. CONTEXT: the coordinator, before its own
  // acknowledgement of Prepare: until then no counter below can reach zero.
  void excuse(Slot& slot) noexcept {
    slot.excused = true;
    acks(State::kPrepare).fetch_sub(1, std::memory_order_relaxed); // ordered by our ack(kPrepare) to come (M2)
    acks(State::kExit).fetch_sub(1, std::memory_order_relaxed);    // M2
    if (slot.active)
      acks(State::kRun).fetch_sub(1, std::memory_order_relaxed); // M2
  }

  // Gives the stop up, from Prepare or DisableIrq: the gates open, nothing is run. The race with the last
  // acknowledgement is decided by the exchange (INV1). RETURNS: false where the state had moved on.
  // CONTEXT: the coordinator, which then calls disown() for each work that it took back, and acknowledges Exit.
  [[nodiscard]] bool abort(State from) noexcept {
    auto expected = static_cast<uint32_t>(from);
    if (!state_.compare_exchange_strong(expected, static_cast<uint32_t>(State::kExit), std::memory_order_acq_rel,
                                        std::memory_order_relaxed)) // M1; failed: the caller reads again
      return false;
    aborted_ = true;
    open_gates(from == State::kDisableIrq);
    if (from == State::kPrepare) // their works were never queued
      for (size_t i = 0; i < plan_.workers.size(); ++i)
        ack(State::kExit);
    ack(State::kExit); // the gates are open
    return true;
  }
  // A device worker was found disabled when it was to be queued: it is at rest already.
  // CONTEXT: the coordinator in DisableIrq. The stop may move on under this call.
  void excuse_worker(Slot& slot) noexcept {
    slot.excused = true;
    worker_out();
    acks(State::kExit).fetch_sub(1, std::memory_order_relaxed); // never the last: + 1 for the gates (M2)
    ack(State::kDisableIrq);
  }
  // A device worker was found at rest with its work queued: it is held where it is. If it rises it finds the work,
  // and waits at the gate. CONTEXT: the coordinator in DisableIrq. The stop may move on under this call.
  void catch_worker(Slot& slot) noexcept {
    if (slot.came.exchange(1, std::memory_order_relaxed) != 0) // see hold_worker()
      return;
    slot.at_rest = true; // published by the acknowledgement, to whoever opens the gates (M2)
    slot.held_ns = now_ns();
    ack(State::kDisableIrq);
  }
  // The participant of `slot` will never come (its work was taken back): acknowledge Exit for it.
  void disown(const Slot& slot) noexcept {
    if (slot.worker)
      worker_out();
    ack(State::kExit);
  }
  [[nodiscard]] State state() const noexcept {
    return static_cast<State>(state_.load(std::memory_order_acquire)); // M1
  }
  // Blocks while the state is `state`. RETURNS: the new state, or `state` where `deadline` passed first.
  State wait_while(State state, TimePoint deadline) noexcept {
    for (unsigned turn = 0;; ++turn) {
      const auto now = this->state(); // read once a turn
      if (now != state)
        return now;
      if (P::relax(turn))
        continue;
      if (deadline != kForever && P::now() >= deadline)
        return state;
      P::wait(state_, static_cast<uint32_t>(state), deadline);
    }
  }

  // Valid in Run for the coordinator, and in None for whoever owns the object.
  [[nodiscard]] int result() const noexcept { return result_.load(std::memory_order_relaxed); }     // after M1
  [[nodiscard]] bool threw() const noexcept { return threw_.load(std::memory_order_relaxed) != 0; } // after M1
  [[nodiscard]] bool aborted() const noexcept { return aborted_; }
  void collect(Invocation invocation) noexcept {
    if (invocation.result != 0)
      result_.store(invocation.result, std::memory_order_relaxed); // published by ack(kRun) (M2)
    if (invocation.threw)
      threw_.store(1, std::memory_order_relaxed); // M2
  }
  [[nodiscard]] const Plan& plan() const noexcept { return plan_; }
  // The coordinator's notes, until it acknowledges Exit: kicks repeated, and after an abort who had not come.
  uint32_t rekicks = 0;
  bool lift_refused = false;
  CpuMask stragglers{};

  // Copies the timeline. CONTEXT: the owner in Run (times of leaving are then 0) or in None.
  void fill(StopReport& report) const {
    report.end = aborted_ ? StopEnd::kAborted : StopEnd::kCompleted;
    report.all_held_ns = aborted_ ? 0 : all_held_ns_;
    report.exit_ns = exit_ns_;
    report.left_ns = left_ns_;
    report.rekicks = rekicks;
    report.lift_refused = lift_refused;
    report.stragglers = stragglers;
    report.participants.clear();
    const bool over = state() == State::kNone;
    for (const auto slots : {plan_.vcpus, plan_.workers})
      for (const Slot* slot : slots)
        if (!slot->excused)
          report.participants.push_back({slot->cpu, slot->worker, slot->activity, slot->kicked_ns,
                                         // it may have been out since the stop before
                                         slot->out_ns != 0 ? std::max(slot->out_ns, slot->kicked_ns) : 0,
                                         slot->held_ns, slot->ran_ns, over ? slot->released_ns : 0, slot->result,
                                         slot->lifted});
  }

private:
  template <class T>
  using Atomic = typename P::template Atomic<T>;
  using Word = Atomic<uint32_t>;

  static constexpr uint32_t kShut = 0;
  static constexpr uint32_t kOpen = 1;
  static constexpr uint32_t kAborted = 2; // run_gate_: go by, nothing is run

  Word& acks(State state) noexcept { return acks_[static_cast<size_t>(state)]; }
  void set_acks(State state, uint32_t count) noexcept { acks(state).store(count, std::memory_order_relaxed); }

  static int64_t now_ns() noexcept { return P::now().time_since_epoch().count(); }

  // Moves on from `from`, and through every state that nobody has to acknowledge.
  void advance(State from) noexcept {
    for (;;) {
      const State next = from == State::kExit ? State::kNone : static_cast<State>(static_cast<uint32_t>(from) + 1);
      // Before the exchange: after it, others act on it.
      // relaxed: all excuses were made before the coordinator acknowledged Prepare (M2). Read any later, a 0 might
      // mean that the runners are done, and we would open the gates without having seen what they did.
      const bool nobody_runs = next == State::kRun && acks(State::kRun).load(std::memory_order_relaxed) == 0;
      if (next == State::kRun)
        all_held_ns_ = now_ns();
      if (next == State::kNone)
        left_ns_ = now_ns();
      auto expected = static_cast<uint32_t>(from);
      // acq_rel: hands on what M2 gathered to all who read the state (M1). Failed: aborted, nothing to do.
      if (!state_.compare_exchange_strong(expected, static_cast<uint32_t>(next), std::memory_order_acq_rel,
                                          std::memory_order_relaxed))
        return;
      switch (next) {
      case State::kDisableIrq:
        if (plan_.workers.empty())
          break;
        P::wake_all(state_); // the coordinator queues the workers' works
        return;
      case State::kRun:
        if (nobody_runs) // each one was excused
          break;
        // Read before the gate opens: behind it, the stop may be over at any moment, and armed again.
        if (plan_.coordinator_runs && active_vcpus_ != 0) {
          P::wake_all(state_);
          open(run_gate_, kOpen);
        } else if (active_vcpus_ != 0) {
          open(run_gate_, kOpen);
        } else {
          P::wake_all(state_);
        }
        return;
      case State::kExit:
        open_gates(true);
        if (!plan_.coordinator_runs) // it was not woken for Run, and has to acknowledge Exit too
          P::wake_all(state_);
        if (acks(State::kExit).fetch_sub(1, std::memory_order_acq_rel) != 1) // M2
          return;
        break; // nobody was here
      case State::kNone:
        P::wake_all(state_);
        return;
      case State::kPrepare:
        return; // only arm() goes there
      }
      from = next;
    }
  }

  // Exit: workers first, then vCPUs, the reverse of the order in which they were held.
  void open_gates(bool workers_are_in) noexcept {
    exit_ns_ = now_ns();
    if (!workers_are_in) {
      open_vcpu_gates();
      return;
    }
    let_lie();
    if (!plan_.workers.empty())
      open(worker_gate_, kOpen);
    worker_out(); // ours; the last worker to leave opens the vCPUs' gates
  }
  // Workers that were caught at rest and have not risen go on resting: their works are taken back. One that has
  // risen is at its gate, or about to be.
  void let_lie() noexcept {
    for (Slot* slot : plan_.workers)
      if (slot->at_rest && slot->stopper->cancel(slot->work)) {
        slot->released_ns = now_ns();
        disown(*slot);
      }
  }
  void worker_out() noexcept {
    if (workers_in_.fetch_sub(1, std::memory_order_acq_rel) == 1) // the last one has seen all leave (M4)
      open_vcpu_gates();
  }
  void open_vcpu_gates() noexcept {
    if (run_gate_.load(std::memory_order_relaxed) == kShut && active_vcpus_ != 0) // aborted: nobody else opens it
      open(run_gate_, kAborted);
    open(vcpu_gate_, kOpen);
  }
  static void open(Word& gate, uint32_t how) noexcept {
    gate.store(how, std::memory_order_release); // M3, pairs with pass()
    P::wake_all(gate);
  }
  static uint32_t pass(Word& gate) noexcept {
    for (unsigned turn = 0;; ++turn) {
      const uint32_t how = gate.load(std::memory_order_acquire); // M3
      if (how != kShut)
        return how;
      if (!P::relax(turn))
        P::wait(gate, kShut, kForever);
    }
  }

  Invocation hold_vcpu(Slot& slot) noexcept {
    Invocation invocation{0, false};
    slot.out_ns = slot.stopper->outing.out_ns;
    slot.activity = slot.stopper->outing.activity;
    slot.held_ns = now_ns();
    ack(State::kPrepare);
    if (slot.active && pass(run_gate_) == kOpen) {
      StopContext context{slot.cpu, plan_.budget_end};
      invocation = invoke(*plan_.fn, context);
      collect(invocation);
      slot.result = invocation.result;
      slot.ran_ns = now_ns();
      ack(State::kRun);
    }
    pass(vcpu_gate_);
    slot.released_ns = now_ns();
    ack(State::kExit); // INV4: nothing of ours after this line
    return invocation;
  }

  void hold_worker(Slot& slot) noexcept {
    // relaxed: the loser does nothing that the winner has to see; the acknowledgement publishes (M2).
    if (slot.came.exchange(1, std::memory_order_relaxed) == 0) {
      slot.out_ns = slot.stopper->outing.out_ns;
      slot.activity = slot.stopper->outing.activity;
      slot.held_ns = now_ns();
      ack(State::kDisableIrq);
    }
    pass(worker_gate_);
    slot.released_ns = now_ns();
    worker_out();
    ack(State::kExit); // INV4
  }

  Word state_{static_cast<uint32_t>(State::kNone)};
  std::array<Word, 5> acks_{};
  Word workers_in_{0};
  Word run_gate_{kShut};
  Word worker_gate_{kShut};
  Word vcpu_gate_{kShut};
  Atomic<int> result_{0};
  Word threw_{0};
  // Written by arm() before the works are queued, read by all until None:
  Plan plan_;
  uint32_t active_vcpus_ = 0;
  // Written by the one who moves the state (INV1), read in None, or in Run where it says so:
  int64_t all_held_ns_ = 0;
  int64_t exit_ns_ = 0;
  int64_t left_ns_ = 0;
  bool aborted_ = false;
};

} // namespace stopvisor::stopper
