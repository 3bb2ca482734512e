// SPDX-License-Identifier: Apache-2.0
#include "vmm/thread_priority.h"

#include <sched.h>
#include <unistd.h>

namespace stopvisor::vmm {

void ThreadPriority::adopt_this_thread() noexcept {
  policy_ = ::sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;
  tid_.store(::gettid(), std::memory_order_release); // U2, pairs with thread_id()
}

void ThreadPriority::leave() noexcept {
  settle();
  tid_.store(0, std::memory_order_release); // U2
}

void ThreadPriority::note_urgent() noexcept {
  uint32_t idle = kIdle;
  urgency_.compare_exchange_strong(idle, kKicked, std::memory_order_acq_rel, std::memory_order_relaxed); // U1
}

// A lift races with the thread's own way back to its work. Whoever makes urgency_ leave kLifted lowers the thread;
// and the lifter looks again after its system call, in case the thread had lowered itself before it: so no guest
// code runs with the priority for longer than that. No lock: a thread that loses its processor at the wrong place
// would keep everybody who kicks it waiting.
stopper::Kick::Lift ThreadPriority::lift() noexcept {
  const pid_t tid = thread_id();
  uint32_t kicked = kKicked;
  // acq_rel, here and below: system calls on one thread are ordered by who moved the word last (U1).
  if (tid == 0 || policy_ == SCHED_FIFO || policy_ == SCHED_RR ||
      !urgency_.compare_exchange_strong(kicked, kLifted, std::memory_order_acq_rel, std::memory_order_relaxed))
    return stopper::Kick::Lift::kNotNeeded;
  const sched_param lowest{.sched_priority = 1}; // above all that is not real-time; enough
  const bool raised = ::sched_setscheduler(tid, SCHED_FIFO | SCHED_RESET_ON_FORK, &lowest) == 0;
  if (urgency_.load(std::memory_order_acquire) != kLifted) // U1: it has lowered itself, perhaps too early
    lower(tid);
  return raised ? stopper::Kick::Lift::kLifted : stopper::Kick::Lift::kRefused;
}

// The thread may settle between the exchange and the system call: then it is at its own work with the priority
// until the caller's next instruction. Callers are urgent themselves where they may be, so that nothing comes
// between.
void ThreadPriority::restore() noexcept {
  uint32_t lifted = kLifted;
  const pid_t tid = thread_id();
  if (urgency_.compare_exchange_strong(lifted, kKicked, std::memory_order_acq_rel,
                                       std::memory_order_relaxed) && // U1
      tid != 0)
    lower(tid);
}

void ThreadPriority::lower(pid_t tid) const noexcept {
  const sched_param none{.sched_priority = 0};                           // the nice value was kept all along
  (void)::sched_setscheduler(tid, policy_ | SCHED_RESET_ON_FORK, &none); // lowering is always allowed
}

void ThreadPriority::settle() noexcept {
  // relaxed: a kick that we miss here has its thread look again before long (a vCPU's KVM_RUN ends at once).
  if (urgency_.load(std::memory_order_relaxed) != kIdle &&
      urgency_.exchange(kIdle, std::memory_order_acq_rel) == kLifted) // U1
    lower(::gettid());
}

} // namespace stopvisor::vmm
