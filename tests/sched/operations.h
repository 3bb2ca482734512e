// SPDX-License-Identifier: Apache-2.0
// What clients do: each call of the stop family, with everything that must be true around it.
#pragma once

#include "tests/sched/world.h"

namespace stopvisor::sched {

// How a callback behaves.
enum class Manner { kQuiet, kReturnsANumber, kThrows, kCallsBack };

// One call of the family and its terms.
struct Terms {
  StopOptions options{};
  Manner manner = Manner::kQuiet;
};

// A stop that another client lets go.
struct Handover {
  Stop stop;
  World::Claim claim{};
  unsigned waiting = kNobody;
  bool done = false;
  Object object;
};

// CONTEXT of all: a client's fiber. They fail the schedule where the call breaks a promise.
void hold(World& world, const Terms& terms, const CpuMask* cpus = nullptr);
void hold_and_hand_over(World& world, const Terms& terms, Handover& to);
void release_what_is_handed_over(World& world, Handover& from); // until `done`
void end_handover(Handover& handover);
void stop_machine(World& world, const Terms& terms, const CpuMask* active = nullptr);
void stop_machine_from_inactive(World& world, CpuId cpu, const Terms& terms, bool runs_itself);
void stop_cpus(World& world, const CpuMask& cpus, const Terms& terms, bool only_try = false);
void stop_one(World& world, CpuId cpu, const Terms& terms);
void stop_two(World& world, CpuId cpu1, CpuId cpu2, const Terms& terms);
void stop_one_nowait(World& world, CpuId cpu, Work& work);
void service_run(World& world, const Terms& terms);
void service_hold(World& world, const Terms& terms, unsigned runs_meanwhile = 0);
void close_service(World& world);

} // namespace stopvisor::sched
