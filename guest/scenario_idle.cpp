// SPDX-License-Identifier: Apache-2.0
// idle: waits in HLT until the next interrupt, which is the periodic timer's.
#include "guest/kernel_call.h"
#include "guest/scenarios.h"

namespace stopvisor::probe {

void idle_slice(SliceState& state) {
  idle();
  ++state.results->idle_wakeups;
}

} // namespace stopvisor::probe
