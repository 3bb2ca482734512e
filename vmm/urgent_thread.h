// SPDX-License-Identifier: Apache-2.0
// Threads that ask for stops go before those that run guests.
//
// Letting a guest go wakes a thread for each vCPU. On a host with fewer processors than vCPUs the thread that let
// them go would lose its processor at once, and its client would wait for the guests' turns to end: 6 ms instead of
// 0.1 for each of a row of stops. Such a thread does little and sleeps the rest of the time, so it harms nobody.
#pragma once

namespace stopvisor::vmm {

// Lifts the calling thread above all that is not real-time (SCHED_FIFO; needs CAP_SYS_NICE or RLIMIT_RTPRIO), for
// the rest of its life; threads and processes it makes are as others. Does nothing where the process may not.
// CONTEXT: a thread that serves requests for stops and otherwise blocks.
void make_this_thread_urgent() noexcept;
// Takes that back. CONTEXT: the thread itself.
void make_this_thread_ordinary() noexcept;

// The same for work that may take long, above all where a guest decides how long: the thread is ordinary while this
// lives, and then again as it was.
class OrdinaryForAWhile {
public:
  OrdinaryForAWhile() noexcept;
  ~OrdinaryForAWhile();
  OrdinaryForAWhile(const OrdinaryForAWhile&) = delete;
  OrdinaryForAWhile& operator=(const OrdinaryForAWhile&) = delete;

private:
  const bool was_urgent_;
};

// The other way round: in a stop and until the guest is let go, nobody else's turn for this processor makes it
// wait.
class UrgentForAWhile {
public:
  UrgentForAWhile() noexcept { make_this_thread_urgent(); }
  ~UrgentForAWhile() { make_this_thread_ordinary(); }
  UrgentForAWhile(const UrgentForAWhile&) = delete;
  UrgentForAWhile& operator=(const UrgentForAWhile&) = delete;
};

// Whether this process may lift threads so, as stops do with whoever is late. CONTEXT: any thread; it is lifted and
// lowered again.
[[nodiscard]] bool may_lift_threads() noexcept;

} // namespace stopvisor::vmm
