// SPDX-License-Identifier: Apache-2.0
// The scenarios: small ones by name, to be searched exhaustively, and large ones made up from a seed.
#pragma once

#include <span>

#include "tests/sched/schedule.h"

namespace stopvisor::sched {

struct NamedScenario {
  const char* name;
  Scenario (*make)();
  unsigned bound = 2; // preemptions, in the full search
};

std::span<const NamedScenario> small_scenarios();

// Three to five vCPUs, up to two workers, two to four clients: the same seed makes the same.
Scenario random_scenario(uint64_t seed);

} // namespace stopvisor::sched
