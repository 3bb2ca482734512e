// SPDX-License-Identifier: Apache-2.0
// Two vCPUs and two clients: every pair of calls whose interleavings are searched exhaustively.
#include "tests/sched/scenarios.h"

namespace stopvisor::sched {
namespace {

using Body = std::function<void(World&)>;

constexpr Terms kNumber{.manner = Manner::kReturnsANumber};

Terms within(int64_t milliseconds) {
  Terms terms;
  terms.options.deadline = after(milliseconds);
  Engine::get().expect_deadline(terms.options.deadline);
  return terms;
}
Terms hurried() {
  Terms terms;
  terms.options.budget = stopper::Nanoseconds{0};
  return terms;
}

Scenario pair(Body one, Body two, World::Shape shape = {}) {
  return {.shape = shape,
          .prepare = {},
          .clients = {{"client0", std::move(one)}, {"client1", std::move(two)}},
          .settled = true};
}

void plain_hold(World& world) {
  hold(world, {});
}
void wide(World& world) {
  stop_machine(world, kNumber);
}
void on_all(World& world) {
  const CpuMask all = CpuMask::first_n(2);
  stop_machine(world, kNumber, &all);
}
void one(World& world) {
  stop_one(world, 1, kNumber);
}
void two(World& world) {
  stop_two(world, 1, 0, kNumber);
}
void each(World& world) {
  stop_cpus(world, CpuMask::first_n(2), kNumber);
}
void run(World& world) {
  service_run(world, kNumber);
}
void keep(World& world) {
  service_hold(world, {});
}
void leave(World& world) {
  world.take_offline(1);
}
void come(World& world) {
  if (!world.bring_online(1))
    Engine::get().fail("unpark fails");
}

Scenario hotplug(Body client, Body plug, uint32_t offline = 0) {
  Scenario scenario = pair(std::move(client), std::move(plug), {.offline = offline});
  scenario.prepare = [](World& world) { world.hotplug_goes_on = true; };
  return scenario;
}

Scenario abort_race(int64_t milliseconds, Body hasty, const Body& afterwards = {}) {
  Scenario scenario = pair(
      [milliseconds, afterwards](World& world) {
        hold(world, within(milliseconds));
        if (afterwards)
          afterwards(world);
      },
      std::move(hasty));
  scenario.prepare = [](World& world) { world.rekicks_allowed = true; };
  return scenario;
}

// vCPU 1 comes after the time at which the missing are lifted.
Scenario late(Body one, Body other) {
  Scenario scenario = pair(std::move(one), std::move(other));
  scenario.prepare = [](World& world) {
    world.rekicks_allowed = true;
    world.get_stuck(1, after(8));
  };
  return scenario;
}

constexpr NamedScenario kScenarios[] = {
    {"hold-hold", [] { return pair(plain_hold, plain_hold); }},
    {"hold-wide", [] { return pair(plain_hold, wide); }},
    {"wide-wide", [] { return pair(wide, on_all); }},
    {"wide-two", [] { return pair(wide, two); }},
    {"hold-two", [] { return pair(plain_hold, two); }, 1},
    {"two-two", [] { return pair(two, [](World& world) { stop_two(world, 0, 1, kNumber); }); }, 1},
    {"wide-one", [] { return pair(wide, one); }},
    {"one-one", [] { return pair(one, one); }, 3},
    {"cpus-two", [] { return pair(each, two); }},
    {"cpus-hold", [] { return pair(each, plain_hold); }},
    {"cpus-try",
     [] { return pair(each, [](World& world) { stop_cpus(world, CpuMask::first_n(2), kNumber, true); }); }},
    {"some-one",
     [] {
       return pair(
           [](World& world) {
             const CpuMask first = CpuMask::of(0);
             hold(world, {}, &first);
           },
           one);
     },
     3},
    {"nowait-hold",
     [] {
       return pair(
           [](World& world) {
             stop_one_nowait(world, 1, world.works[0]);
             stop_one_nowait(world, 1, world.works[0]);
           },
           plain_hold);
     }},
    {"released-elsewhere",
     [] {
       static Handover handover; // made anew below: a schedule may have been given up
       Scenario scenario = pair(
           [](World& world) {
             hold_and_hand_over(world, {}, handover);
             end_handover(handover);
           },
           plain_hold);
       scenario.clients.push_back({"releaser", [](World& world) { release_what_is_handed_over(world, handover); }});
       scenario.prepare = [](World&) { new (&handover) Handover; };
       return scenario;
     }},
    {"worker-hold", [] { return pair(plain_hold, one, {.cpus = 2, .workers = 1}); }},
    {"worker-nowait", // a work and a stop find the worker at rest
     [] {
       return pair([](World& world) { stop_one_nowait(world, 1, world.works[0]); }, plain_hold,
                   {.cpus = 1, .workers = 1});
     }},
    {"worker-abort",
     [] { return pair([](World& world) { hold(world, within(5)); }, [](World&) {}, {.cpus = 1, .workers = 1}); }},
    {"abort-again", // the next stop meets whoever came late to the one that was given up
     [] { return abort_race(5, [](World&) {}, [](World& world) { hold(world, {}); }); }, 1},
    {"abort-hold", [] { return abort_race(5, plain_hold); }},
    {"abort-two", [] { return abort_race(5, two); }, 1},
    {"two-abort",
     [] {
       Scenario scenario = pair([](World& world) { stop_two(world, 0, 1, within(5)); }, plain_hold);
       scenario.prepare = [](World& world) { world.rekicks_allowed = true; };
       return scenario;
     },
     1},
    {"abort-one", [] { return abort_race(5, [](World& world) { stop_one(world, 1, within(7)); }); }, 1},
    {"abort-cpus",
     [] { return abort_race(5, [](World& world) { stop_cpus(world, CpuMask::first_n(2), within(7)); }); }, 1},
    {"abort-stuck",
     [] {
       Scenario scenario = abort_race(5, wide);
       scenario.prepare = [](World& world) {
         world.rekicks_allowed = true;
         world.get_stuck(1, after(30));
       };
       return scenario;
     }},
    {"late-hold", [] { return late(plain_hold, one); }}, // it is lifted, and lowered by whoever comes first to it
    {"late-wide", [] { return late(wide, plain_hold); }},
    {"late-one-two", [] { return late(one, two); }, 1},
    {"lost-kick",
     [] {
       Scenario scenario = pair(plain_hold, one);
       scenario.prepare = [](World& world) {
         world.rekicks_allowed = true;
         world.lose_a_kick(1);
         Engine::get().tolerate_stalls();
       };
       return scenario;
     }},
    {"hold-offline", [] { return hotplug(plain_hold, leave); }},
    {"wide-offline", [] { return hotplug(on_all, leave); }},
    {"two-offline", [] { return hotplug(two, leave); }},
    {"one-offline", [] { return hotplug(one, leave); }, 3},
    {"hold-online", [] { return hotplug(plain_hold, come, 0b10); }, 3},
    {"one-offline-hold",
     [] {
       Scenario scenario = hotplug(one, leave);
       scenario.clients.push_back({"client2", plain_hold});
       return scenario;
     },
     1},
    {"inactive-one",
     [] {
       return hotplug([](World& world) { stop_one(world, 0, kNumber); },
                      [](World& world) {
                        stop_machine_from_inactive(world, 1, kNumber, true);
                        come(world);
                      },
                      0b10);
     },
     3},
    {"service-run-run", [] { return pair(run, run); }},
    {"service-run-hurried", [] { return pair([](World& world) { service_run(world, hurried()); }, run); }},
    {"service-hold-run", [] { return pair(keep, run); }},
    {"service-hold-hold", [] { return pair(keep, keep); }},
    {"service-deadline",
     [] {
       Scenario scenario = pair(keep, [](World& world) { service_run(world, within(5)); });
       scenario.clients.push_back({"client2", run});
       return scenario;
     },
     0},
    {"service-hold-deadline",
     [] {
       return pair([](World& world) { service_hold(world, hurried()); },
                   [](World& world) { service_run(world, within(5)); });
     }},
    {"service-close",
     [] {
       Scenario scenario = pair(keep, close_service);
       scenario.prepare = [](World& world) { world.closing = true; };
       return scenario;
     },
     3},
    {"service-close-run",
     [] {
       Scenario scenario = pair(run, close_service);
       scenario.prepare = [](World& world) { world.closing = true; };
       scenario.clients.push_back({"client2", keep});
       return scenario;
     },
     1},
};

} // namespace

std::span<const NamedScenario> small_scenarios() {
  return kScenarios;
}

} // namespace stopvisor::sched
