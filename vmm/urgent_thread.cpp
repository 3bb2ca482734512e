// SPDX-License-Identifier: Apache-2.0
#include "vmm/urgent_thread.h"

#include <sched.h>

namespace stopvisor::vmm {

void make_this_thread_urgent() noexcept {
  const sched_param lowest{.sched_priority = 1};
  (void)::sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &lowest);
}

void make_this_thread_ordinary() noexcept {
  const sched_param none{};
  // Lowering is always allowed, taking the flag back is not (sched(7): it needs CAP_SYS_NICE).
  (void)::sched_setscheduler(0, SCHED_OTHER | SCHED_RESET_ON_FORK, &none);
}

OrdinaryForAWhile::OrdinaryForAWhile() noexcept
    : was_urgent_((::sched_getscheduler(0) & ~SCHED_RESET_ON_FORK) == SCHED_FIFO) {
  if (was_urgent_)
    make_this_thread_ordinary();
}

OrdinaryForAWhile::~OrdinaryForAWhile() {
  if (was_urgent_)
    make_this_thread_urgent();
}

bool may_lift_threads() noexcept {
  const int policy = ::sched_getscheduler(0);
  sched_param before{};
  const sched_param lowest{.sched_priority = 1};
  if (policy < 0 || ::sched_getparam(0, &before) != 0 || ::sched_setscheduler(0, SCHED_FIFO, &lowest) != 0)
    return false;
  (void)::sched_setscheduler(0, policy, &before); // lowering is always allowed
  return true;
}

} // namespace stopvisor::vmm
