// SPDX-License-Identifier: Apache-2.0
// One scenario: a world, its clients, and running them under a strategy.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/sched/operations.h"

namespace stopvisor::sched {

struct Client {
  const char* name;
  std::function<void(World&)> body;
};

struct Scenario {
  World::Shape shape;
  std::function<void(World&)> prepare; // may be empty
  std::vector<Client> clients;
  bool settled = false; // the clients begin when all vCPUs rest in their guests
  bool ticking = false; // each look at the clock advances it
};

struct ScheduleResult {
  Verdict verdict = Verdict::kPassed;
  uint64_t steps = 0;
  std::string violation;
};

// Runs one schedule; `make` builds the scenario anew, so that every schedule begins alike.
ScheduleResult run_schedule(Strategy& strategy, const std::function<Scenario()>& make, bool tracing);

} // namespace stopvisor::sched
