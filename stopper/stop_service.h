// SPDX-License-Identifier: Apache-2.0
// Stops shared between clients: callbacks that are run together, and holds that are counted.
//
// Whoever needs the guest held comes here with a callback or for a hold. The first to come leads: it asks the
// machinery for one stop and runs, on its own thread and in order, its own callback and those of everybody who
// came while the stop was being gathered or was going on. While somebody holds the VM the stop simply goes on,
// and callbacks run under it at once. So 64 clients that come together need a stop or two, not 64.
//
//   nobody leads, no stop ──run()/acquire_hold()──▶ one leads: gathers ──▶ drains the queue
//        ▲                                                                    │
//        ├──────── no holds: the stop is released ────────────────────────────┤
//        └─ nobody leads, stop held ◀── holds > 0: the stop is kept ──────────┘
//              the last release_hold() releases it
#pragma once

#include <cstdint>
#include <expected>

#include "stopper/stop_machine.h"

namespace stopvisor::stopper {

struct RunOutcome {
  int result = 0;        // the callback's
  uint64_t sequence = 0; // of the stop it ran under
};

template <class P>
class BasicStopService {
public:
  using Machine = BasicStopMachine<P>;

  // `machine` must outlive the service, and nobody else should ask it for wide stops that last.
  explicit BasicStopService(Machine& machine) noexcept : machine_(machine) {}
  ~BasicStopService() { close(); }
  BasicStopService(const BasicStopService&) = delete;
  BasicStopService& operator=(const BasicStopService&) = delete;

  // Runs fn exactly once while every participant is held, on the caller's thread or on that of another caller of
  // run(). options.budget bounds for how long the caller goes on with others' callbacks before it lets the guest
  // run again.
  // CONTEXT: blocks; any thread but a participant's or one inside a callback.
  // RETURNS: kDeadline (fn was not run), kWouldDeadlock, kCallbackThrew, kEnded.
  [[nodiscard]] std::expected<RunOutcome, StopError> run(StopFn fn, const StopOptions& options = {});

  // Takes one hold: the guest stays held until as many holds are given back as were taken. Any thread may give
  // it back. CONTEXT and RETURNS as run().
  [[nodiscard]] std::expected<RunOutcome, StopError> acquire_hold(const StopOptions& options = {});
  // CONTEXT: any thread, callbacks included; does not block. RETURNS: false where there was no hold.
  bool release_hold() noexcept;
  [[nodiscard]] uint32_t holds() noexcept;

  // See BasicStopMachine::last_report().
  [[nodiscard]] StopReport last_report() { return machine_.last_report(); }
  // Callers that have not been served yet, the leader included. A snapshot.
  [[nodiscard]] uint32_t waiting() noexcept;

  // The VM ends: every hold is given back, the guest let go, whoever waits gets kEnded.
  void close() noexcept;

private:
  template <class T>
  using Atomic = typename P::template Atomic<T>;

  enum Phase : uint32_t { kQueued, kLeads, kDone };

  // A caller, on its own stack.
  struct Request {
    const StopFn* fn = nullptr;      // null: for a hold
    Request* next = nullptr;         // under the lock
    Atomic<uint32_t> phase{kQueued}; // written by leaders, under the lock where not to kDone
    // Written by the leader before kDone:
    RunOutcome outcome{};
    StopErrc failure{};
    bool failed = false;
  };

  [[nodiscard]] std::expected<RunOutcome, StopError> serve(Request& request, const StopOptions& options);
  [[nodiscard]] bool await_turn(Request& request, TimePoint deadline) noexcept;
  [[nodiscard]] std::expected<void, StopError> lead(const StopOptions& options);
  void drain(const StopOptions& options) noexcept;
  void execute(Request& request, TimePoint budget_end) noexcept;
  void pass_on_lead() noexcept REQUIRES(lock_);
  void unlink(Request& request) noexcept REQUIRES(lock_);

  Machine& machine_;
  BasicLock<P> lock_;
  Request* first_ GUARDED_BY(lock_) = nullptr;
  Request* last_ GUARDED_BY(lock_) = nullptr;
  bool somebody_leads_ GUARDED_BY(lock_) = false;
  uint32_t holds_ GUARDED_BY(lock_) = 0;
  // The leader's; under the lock where nobody leads.
  BasicStop<P> stop_;
};

template <class P>
std::expected<RunOutcome, StopError> BasicStopService<P>::run(StopFn fn, const StopOptions& options) {
  Request request;
  request.fn = &fn;
  return serve(request, options);
}

template <class P>
std::expected<RunOutcome, StopError> BasicStopService<P>::acquire_hold(const StopOptions& options) {
  Request request;
  return serve(request, options);
}

template <class P>
std::expected<RunOutcome, StopError> BasicStopService<P>::serve(Request& request, const StopOptions& options) {
  if (machine_.thread_marked())
    return std::unexpected(StopError{StopErrc::kWouldDeadlock});
  bool leads = false;
  {
    const BasicLockGuard<P> guard(lock_);
    (last_ != nullptr ? last_->next : first_) = &request;
    last_ = &request;
    leads = !somebody_leads_;
    somebody_leads_ = true;
  }
  if (!leads && !await_turn(request, options.deadline))
    return std::unexpected(StopError{StopErrc::kDeadline});
  if (request.phase.load(std::memory_order_acquire) != kDone) { // V1
    if (auto led = lead(options); !led) {
      const BasicLockGuard<P> guard(lock_);
      unlink(request);
      pass_on_lead();
      return std::unexpected(led.error());
    }
    drain(options);
  }
  if (request.failed)
    return std::unexpected(StopError{request.failure});
  return request.outcome;
}

// Waits until a leader has executed the request or made us the leader.
// RETURNS: false where `deadline` passed and the request was taken back.
template <class P>
bool BasicStopService<P>::await_turn(Request& request, TimePoint deadline) noexcept {
  for (unsigned turn = 0;; ++turn) {
    if (request.phase.load(std::memory_order_acquire) != kQueued) // V1
      return true;
    if (P::relax(turn))
      continue;
    if (deadline != kForever && P::now() >= deadline)
      break;
    P::wait(request.phase, kQueued, deadline);
  }
  {
    const BasicLockGuard<P> guard(lock_);
    // A leader takes requests off the queue under the lock: while ours is there, nobody has begun it.
    for (Request* entry = first_; entry != nullptr; entry = entry->next)
      if (entry == &request) {
        const bool leads = request.phase.load(std::memory_order_relaxed) == kLeads; // under the lock
        unlink(request);
        if (leads) // we were made the leader just now: somebody else must be
          pass_on_lead();
        return false;
      }
  }
  while (request.phase.load(std::memory_order_acquire) == kQueued) // V1: it is being executed
    P::wait(request.phase, kQueued, kForever);
  return true;
}

// Sees to it that a stop is held. CONTEXT: the leader.
template <class P>
std::expected<void, StopError> BasicStopService<P>::lead(const StopOptions& options) {
  if (stop_)
    return {};
  auto stop = machine_.hold(options);
  if (!stop)
    return std::unexpected(stop.error());
  stop->detach(); // a hold may be given back by any thread
  stop_ = std::move(*stop);
  return {};
}

// Executes what is queued until the queue is empty or the budget is spent, then gives up the lead.
// CONTEXT: the leader, with the stop held.
template <class P>
void BasicStopService<P>::drain(const StopOptions& options) noexcept {
  const TimePoint budget_end = P::now() + options.budget;
  const BasicInsideCallback<P> inside(&machine_);
  for (bool first = true;; first = false) {
    Request* request = nullptr;
    {
      const BasicLockGuard<P> guard(lock_);
      if (first_ == nullptr || (!first && P::now() >= budget_end)) {
        // holds_ is read and the stop given up under one lock: a hold is either counted by now, or its request is
        // still queued, and its own leader makes a new stop.
        if (holds_ == 0)
          stop_.release();
        pass_on_lead();
        break;
      }
      request = first_;
      unlink(*request);
      if (request->fn == nullptr) {
        // Once the VM ends nobody gives holds back any more. Where close() has not come to the lock yet, it will
        // find this hold counted and give it back.
        request->failed = machine_.closed();
        request->failure = StopErrc::kEnded;
        holds_ += request->failed ? 0 : 1;
      }
    }
    execute(*request, budget_end);
  }
}

template <class P>
void BasicStopService<P>::execute(Request& request, TimePoint budget_end) noexcept {
  request.outcome.sequence = machine_.sequence();
  machine_.note_shared();
  if (request.fn != nullptr) {
    StopContext context{kMaxCpus, budget_end};
    const Invocation invocation = invoke(*request.fn, context);
    request.outcome.result = invocation.result;
    request.failed = invocation.threw;
    request.failure = StopErrc::kCallbackThrew;
  }
  // The request lives on its caller's stack and may be gone after the store; waking needs its address alone.
  request.phase.store(kDone, std::memory_order_release); // V1, pairs with serve() and await_turn()
  P::wake_all(request.phase);
}

// Makes the first in the queue the leader, or nobody: then the stop is kept for holds alone. The last hold may
// have been given back while a leader that gives up was still trusted to release the stop.
template <class P>
void BasicStopService<P>::pass_on_lead() noexcept {
  somebody_leads_ = first_ != nullptr;
  if (!somebody_leads_ && holds_ == 0)
    stop_.release();
  if (first_ != nullptr) {
    first_->phase.store(kLeads, std::memory_order_release); // V1: hands over stop_ as well
    P::wake_all(first_->phase);
  }
}

template <class P>
void BasicStopService<P>::unlink(Request& request) noexcept {
  Request* before = nullptr;
  for (Request* entry = first_; entry != nullptr && entry != &request; entry = entry->next)
    before = entry;
  (before != nullptr ? before->next : first_) = request.next;
  if (last_ == &request)
    last_ = before;
}

template <class P>
bool BasicStopService<P>::release_hold() noexcept {
  const BasicLockGuard<P> guard(lock_);
  if (holds_ == 0)
    return false;
  --holds_;
  if (holds_ == 0 && !somebody_leads_) // a leader sees to it itself when it has drained
    stop_.release();
  return true;
}

template <class P>
uint32_t BasicStopService<P>::holds() noexcept {
  const BasicLockGuard<P> guard(lock_);
  return holds_;
}

template <class P>
uint32_t BasicStopService<P>::waiting() noexcept {
  const BasicLockGuard<P> guard(lock_);
  uint32_t count = 0;
  for (const Request* entry = first_; entry != nullptr; entry = entry->next)
    ++count;
  return count;
}

template <class P>
void BasicStopService<P>::close() noexcept {
  machine_.close(); // leaders to come get kEnded, and pass the lead on until the queue is empty
  const BasicLockGuard<P> guard(lock_);
  holds_ = 0;
  if (!somebody_leads_)
    stop_.release();
}

} // namespace stopvisor::stopper
