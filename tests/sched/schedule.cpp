// SPDX-License-Identifier: Apache-2.0
#include "tests/sched/schedule.h"

#include "tests/sched/arena.h"

namespace stopvisor::sched {

ScheduleResult run_schedule(Strategy& strategy, const std::function<Scenario()>& make, bool tracing) {
  Engine& engine = Engine::get();
  engine.begin(strategy, tracing);
  ScheduleResult result;
  const ArenaScope arena;
  auto* const scenario = new Scenario(make());
  auto* const world = new World(scenario->shape);
  if (!scenario->ticking)
    engine.stop_ticking();
  if (scenario->prepare)
    scenario->prepare(*world);
  auto* const busy = new size_t(scenario->clients.size());
  const auto start_clients = [&engine, scenario, world, busy] {
    for (const Client& client : scenario->clients)
      engine.spawn(client.name, [&client, world, busy] {
        client.body(*world);
        if (--*busy == 0) // the last one to end
          world->finish(world->closing);
      });
  };
  if (scenario->settled)
    engine.explore_when_settled(start_clients);
  else
    start_clients();
  result.verdict = engine.run();
  result.steps = engine.steps();
  if (result.verdict == Verdict::kPassed) {
    delete world; // where it was left in the middle, its locks are not free: it goes with the arena
    delete scenario;
    delete busy;
  }
  const ArenaPause pause;
  result.violation = result.verdict == Verdict::kFailed ? engine.violation() : "";
  return result;
}

} // namespace stopvisor::sched
