// SPDX-License-Identifier: Apache-2.0
#include "vmm/urgent_thread.h"

#include <sched.h>

namespace stopvisor::vmm {

void make_this_thread_urgent() noexcept {
  const sched_param lowest{.sched_priority = 1};
  (void)::sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &lowest);
}

} // namespace stopvisor::vmm
