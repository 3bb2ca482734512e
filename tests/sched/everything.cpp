// SPDX-License-Identifier: Apache-2.0
// All that uses the stopper, in one translation unit: what mutants.py compiles again for each mutant.
// NOLINTBEGIN(bugprone-suspicious-include)
#include "tests/sched/operations.cpp"
#include "tests/sched/random_scenario.cpp"
#include "tests/sched/schedule.cpp"
#include "tests/sched/small_scenarios.cpp"
#include "tests/sched/world.cpp"
// NOLINTEND(bugprone-suspicious-include)
