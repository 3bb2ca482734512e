// SPDX-License-Identifier: Apache-2.0
// Scenarios made up from a seed: who takes part, what goes wrong on purpose, and what each client calls.
#include <algorithm>
#include <memory>

#include "tests/sched/scenarios.h"

namespace stopvisor::sched {
namespace {

// What may happen in one scenario; shared by its clients.
struct Mix {
  bool deadlines = false;
  bool lost_kicks = false;
  bool stuck = false;
  bool hotplug = false;
  bool closing = false;
  Handover handover{};
};

class RandomClient {
public:
  RandomClient(std::shared_ptr<Mix> mix, uint64_t seed, uint32_t number, bool closes)
      : mix_(std::move(mix)), random_(seed * 8 + number), number_(number), plugs_(mix_->hotplug && number == 0),
        closes_(closes) {}

  void run(World& world) {
    const uint32_t calls = 1 + random_.below(4);
    const uint32_t closes_after = closes_ ? random_.below(calls) : calls;
    for (uint32_t call = 0; call < calls; ++call) {
      // Each call's objects lie elsewhere on the stack, so that late users of the last one's are seen.
      volatile char* const elsewhere = static_cast<volatile char*>(__builtin_alloca(64 + call * 1024));
      elsewhere[0] = 0;
      if (call == closes_after)
        close_service(world);
      make_trouble(world);
      if (plugs_ && random_.one_in(2))
        plug(world);
      else
        this->call(world);
    }
  }

private:
  CpuId some_cpu(const World& world) { return random_.below(world.shape().cpus); }
  CpuMask some_cpus(const World& world) {
    CpuMask mask = CpuMask::of(some_cpu(world));
    for (CpuId cpu = 0; cpu < world.shape().cpus; ++cpu)
      if (random_.one_in(2))
        mask.set(cpu);
    return mask;
  }
  Terms some_terms() {
    Terms terms;
    if (mix_->deadlines && random_.one_in(2)) {
      constexpr int64_t kWithin[] = {0, 3, 15, 45, 90};
      terms.options.deadline = after(kWithin[random_.below(5)]);
      if (random_.one_in(2)) // it may pass at any moment
        Engine::get().expect_deadline(terms.options.deadline);
    }
    if (random_.one_in(3))
      terms.options.budget = stopper::Nanoseconds{random_.below(60)};
    terms.manner = static_cast<Manner>(random_.below(4));
    return terms;
  }
  void make_trouble(World& world) {
    if (mix_->lost_kicks && random_.one_in(2))
      world.lose_a_kick(random_.below(world.count()));
    if (mix_->stuck && random_.one_in(3))
      world.get_stuck(random_.below(world.count()), after(1 + random_.below(60)));
  }
  void call(World& world) {
    const Terms terms = some_terms();
    const CpuId cpu = some_cpu(world);
    const CpuMask cpus = some_cpus(world);
    switch (random_.below(14)) {
    case 0:
      return hold(world, terms);
    case 1:
      return hold_and_hand_over(world, terms, mix_->handover);
    case 2:
      return hold(world, terms, &cpus);
    case 3:
      return stop_machine(world, terms);
    case 4:
      return stop_machine(world, terms, &cpus);
    case 5:
      return stop_cpus(world, cpus, terms);
    case 6:
      return stop_cpus(world, cpus, terms, true);
    case 7:
      return stop_one(world, cpu, terms);
    case 8:
    case 9:
      return stop_two(world, cpu, (cpu + 1 + random_.below(world.shape().cpus - 1)) % world.shape().cpus, terms);
    case 10:
    case 11:
      return service_run(world, terms);
    case 12:
      return service_hold(world, terms, random_.below(2));
    default:
      world.check(world.machine.last_report());
      if (!mix_->lost_kicks) // nobody kicks again for a work that nobody waits for
        stop_one_nowait(world, cpu, world.works[number_]);
    }
  }
  void plug(World& world) {
    const CpuId cpu = random_.below(world.count());
    if (world.is_online(cpu))
      return world.take_offline(cpu);
    if (cpu < world.shape().cpus && random_.one_in(2))
      stop_machine_from_inactive(world, cpu, some_terms(), random_.one_in(2));
    const TimePoint deadline = mix_->deadlines && random_.one_in(2) ? after(10) : kForever;
    if (!world.bring_online(cpu, deadline) && deadline == kForever && !world.closing)
      Engine::get().fail("unpark fails without a deadline");
  }

  std::shared_ptr<Mix> mix_;
  Random random_;
  uint32_t number_;
  bool plugs_;
  bool closes_;
};

} // namespace

Scenario random_scenario(uint64_t seed) {
  Random random(seed ^ 0x5ced5ced);
  auto mix = std::make_shared<Mix>();
  mix->deadlines = random.one_in(2);
  mix->lost_kicks = random.one_in(5);
  mix->stuck = random.one_in(4);
  mix->hotplug = random.one_in(3);
  mix->closing = random.one_in(8);
  Scenario scenario;
  scenario.ticking = true;
  scenario.shape = {
      .cpus = 3 + random.below(3), .workers = random.below(kMostWorkers + 1), .guest_steps = random.below(3)};
  if (mix->hotplug)
    scenario.shape.offline = random.below(1u << scenario.shape.cpus) & ~1u;
  scenario.prepare = [mix](World& world) {
    world.hotplug_goes_on = mix->hotplug;
    world.closing = mix->closing;
    world.rekicks_allowed = mix->lost_kicks || mix->stuck || mix->deadlines;
    if (mix->lost_kicks)
      Engine::get().tolerate_stalls();
  };
  static constexpr const char* kNames[] = {"client0", "client1", "client2", "client3"};
  const uint32_t clients = 2 + random.below(3);
  auto busy = std::make_shared<uint32_t>(clients);
  for (uint32_t n = 0; n < clients; ++n)
    scenario.clients.push_back({kNames[n], [mix, busy, n, seed, clients](World& world) {
                                  RandomClient(mix, seed, n, mix->closing && n == clients - 1).run(world);
                                  if (--*busy == 0)
                                    end_handover(mix->handover);
                                }});
  scenario.clients.push_back(
      {"releaser", [mix](World& world) { release_what_is_handed_over(world, mix->handover); }});
  return scenario;
}

} // namespace stopvisor::sched
