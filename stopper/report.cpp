// SPDX-License-Identifier: Apache-2.0
#include "stopper/report.h"

#include <algorithm>

namespace stopvisor::stopper {

int64_t StopReport::hold_ns() const noexcept {
  int64_t first_held = INT64_MAX;
  int64_t last_released = 0;
  for (const ParticipantReport& participant : participants) {
    if (participant.held_ns == 0)
      continue;
    first_held = std::min(first_held, participant.held_ns);
    last_released = std::max(last_released, participant.released_ns);
  }
  return last_released > first_held ? last_released - first_held : 0;
}

} // namespace stopvisor::stopper
