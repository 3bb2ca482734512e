// SPDX-License-Identifier: Apache-2.0
// The stopper over SchedPlatform: the only unit of this folder that ThreadSanitizer instruments.
#include "tests/sched/world.h"

namespace stopvisor::stopper {

template class BasicStopMachine<sched::SchedPlatform>;
template class BasicStopService<sched::SchedPlatform>;

} // namespace stopvisor::stopper
