// SPDX-License-Identifier: Apache-2.0
#include "tests/sched/operations.h"

#include <bit>

namespace stopvisor::sched {
namespace {

uint32_t bits(const CpuMask& mask) {
  uint32_t word = 0;
  mask.for_each([&](CpuId cpu) { word |= cpu < 32 ? 1u << cpu : 0; });
  return word;
}

// Watches one call: who ran its callback, what came of it.
class Watch {
public:
  Watch(World& world, const char* what, const Terms& terms)
      : world_(world), what_(what), terms_(terms), owner_(world.new_owner()) {
    Engine::get().note("%s ...", what);
  }
  ~Watch() { over_ = true; }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  [[nodiscard]] int owner() const { return owner_; }
  [[nodiscard]] uint32_t ran() const { return ran_; }

  // The callback's body. `local`: it runs on the caller's thread rather than on context.cpu's.
  int run(const StopContext& context, const World::Claim& claim, bool local, bool alone = true) {
    Engine& engine = Engine::get();
    engine.note("callback of %s on %u", what_, context.cpu);
    if (over_)
      engine.fail("the callback of %s runs after the call has returned", what_);
    if (local ? engine.current() != caller_ : !world_.on_thread_of(context.cpu))
      engine.fail("the callback of %s runs on a thread that is not vCPU %u's", what_, context.cpu);
    const uint32_t bit = 1u << (context.cpu < 31 ? context.cpu : 31);
    if ((ran_ & bit) != 0)
      engine.fail("the callback of %s runs twice", what_);
    ran_ |= bit;
    world_.begin_claim(claim, what_);
    if (alone)
      world_.use(claim);
    if (terms_.manner == Manner::kCallsBack) {
      auto inner = world_.machine.stop_one_cpu(0, [](StopContext&) { return 0; });
      if (inner || inner.error().code != StopErrc::kWouldDeadlock)
        engine.fail("a callback of %s may stop vCPUs itself", what_);
    }
    world_.end_claim(claim);
    ++ended_;
    if (terms_.manner == Manner::kThrows)
      throw 1;
    return value(context.cpu);
  }
  [[nodiscard]] int value(CpuId cpu) const {
    return terms_.manner == Manner::kReturnsANumber ? owner_ * 100 + static_cast<int>(cpu % 32) + 1 : 0;
  }

  // What must be true whatever came of it. RETURNS: whether it was done.
  bool done(const StopError* error, uint32_t tolerated = 0) {
    Engine& engine = Engine::get();
    engine.note("%s: %s", what_, error != nullptr ? stopper::to_string(error->code) : "done");
    if (ended_ != static_cast<uint32_t>(std::popcount(ran_)))
      engine.fail("%s returned while its callback runs", what_);
    if (error == nullptr) {
      if (terms_.manner == Manner::kThrows && ran_ != 0)
        engine.fail("%s hides that its callback threw", what_);
      return true;
    }
    const StopErrc code = error->code;
    const auto is = [&](StopErrc one) { return (tolerated >> static_cast<unsigned>(one) & 1) != 0; };
    if (!is(code) && !(code == StopErrc::kDeadline && terms_.options.deadline != kForever) &&
        !(code == StopErrc::kEnded && world_.closing) &&
        !(code == StopErrc::kNoSuchCpu && world_.hotplug_goes_on) &&
        !(code == StopErrc::kCallbackThrew && terms_.manner == Manner::kThrows && ran_ != 0))
      engine.fail("%s fails: %s", what_, stopper::to_string(code));
    if (code == StopErrc::kDeadline && (bits(error->stragglers) & ran_) != 0)
      engine.fail("%s names a vCPU as late that ran the callback", what_);
    if (code != StopErrc::kCallbackThrew && code != StopErrc::kDeadline && ran_ != 0)
      engine.fail("%s says \"%s\", but its callback ran", what_, stopper::to_string(code));
    return false;
  }
  void none_ran() const {
    if (ran_ != 0)
      Engine::get().fail("%s was called off, but its callback ran", what_);
  }
  void check(int result) const {
    bool known = ran_ == 0 && result == 0;
    for (uint32_t rest = ran_; rest != 0; rest &= rest - 1)
      known = known || value(static_cast<CpuId>(std::countr_zero(rest))) == result;
    if (!known)
      Engine::get().fail("%s gives %d, which no callback of it returned", what_, result);
  }
  void check(const stopper::StopOutcome& outcome) const {
    check(outcome.result);
    uint32_t named = 0;
    for (const auto& [cpu, result] : outcome.nonzero) {
      named |= 1u << cpu;
      if (result != value(cpu) || (ran_ >> cpu & 1) == 0)
        Engine::get().fail("%s: vCPU %u is said to have returned %d", what_, cpu, result);
    }
    if (terms_.manner == Manner::kReturnsANumber && named != ran_)
      Engine::get().fail("%s names %x, but %x returned something", what_, named, ran_);
  }
  void exactly(uint32_t wanted) const {
    if (ran_ != wanted && !(world_.hotplug_goes_on && (ran_ & ~wanted) == 0))
      Engine::get().fail("%s ran on %x, not on %x", what_, ran_, wanted);
  }

private:
  World& world_;
  const char* what_;
  const Terms& terms_;
  int owner_;
  unsigned caller_ = Engine::get().current();
  uint32_t ran_ = 0;
  uint32_t ended_ = 0;
  bool over_ = false;
};

template <class Expected>
const StopError* error_of(const Expected& expected) {
  return expected ? nullptr : &expected.error();
}

void use_for_a_while(World& world, const World::Claim& claim, const char* who) {
  world.begin_claim(claim, who);
  world.use(claim);
  world.end_claim(claim);
}

constexpr uint32_t kBusyIsFine = 1u << static_cast<unsigned>(StopErrc::kBusy);

} // namespace

void hold(World& world, const Terms& terms, const CpuMask* cpus) {
  Watch watch(world, cpus != nullptr ? "hold of some" : "hold", terms);
  auto stop = world.machine.hold(terms.options, cpus);
  if (!watch.done(error_of(stop)))
    return;
  World::Claim claim = world.everything(watch.owner());
  if (cpus != nullptr)
    claim = {bits(*cpus), false, watch.owner()};
  use_for_a_while(world, claim, "hold");
  if (world.machine.hold().error().code != StopErrc::kWouldDeadlock)
    Engine::get().fail("whoever holds a stop may ask for another");
  stop->release();
}

void hold_and_hand_over(World& world, const Terms& terms, Handover& to) {
  Watch watch(world, "hold for another", terms);
  auto stop = world.machine.hold(terms.options);
  if (!watch.done(error_of(stop)))
    return;
  Engine::get().step(to.object, Access::kWrite, "hands over");
  if (to.stop) { // the last one is still being let go
    stop->release();
    return;
  }
  stop->detach();
  to.claim = world.everything(watch.owner());
  world.begin_claim(to.claim, "hold");
  to.stop = std::move(*stop);
  Fiber::publish(&to);
  if (to.waiting != kNobody)
    Engine::get().unblock_fiber(to.waiting);
}

void release_what_is_handed_over(World& world, Handover& from) {
  Engine& engine = Engine::get();
  from.waiting = engine.current();
  for (;;) {
    engine.step(from.object, Access::kWrite, "anything handed over?");
    if (from.stop) {
      Fiber::seen(&from);
      Stop stop = std::move(from.stop);
      world.use(from.claim);
      world.end_claim(from.claim);
      stop.release();
    } else if (from.done) {
      return;
    } else {
      engine.block(&from, kForever, "waiting for a stop to release", Place::current());
    }
  }
}

void end_handover(Handover& handover) {
  Engine::get().step(handover.object, Access::kWrite, "nothing more to hand over");
  handover.done = true;
  if (handover.waiting != kNobody)
    Engine::get().unblock_fiber(handover.waiting);
}

void stop_machine(World& world, const Terms& terms, const CpuMask* active) {
  Watch watch(world, "stop_machine", terms);
  const bool alone = active == nullptr || active->count() == 1;
  auto outcome = world.machine.stop_machine(
      [&](StopContext& context) {
        return watch.run(context, world.everything(watch.owner()), context.cpu == kMaxCpus, alone);
      },
      active, terms.options);
  if (watch.done(error_of(outcome))) {
    watch.check(*outcome);
    if (active != nullptr)
      watch.exactly(bits(*active));
    else if (std::popcount(watch.ran()) != 1)
      Engine::get().fail("stop_machine ran its callback on %x", watch.ran());
  } else if (outcome.error().code == StopErrc::kDeadline) {
    watch.none_ran();
  }
}

void stop_machine_from_inactive(World& world, CpuId cpu, const Terms& terms, bool runs_itself) {
  Watch watch(world, "stop_machine_from_inactive_cpu", terms);
  if (!world.machine.hotplug().write_lock_until(kForever))
    return;
  const CpuMask active = CpuMask::of(runs_itself ? cpu : (cpu + 1) % world.shape().cpus);
  auto outcome = world.machine.stop_machine_from_inactive_cpu(
      cpu,
      [&](StopContext& context) {
        return watch.run(context, world.everything(watch.owner()), context.cpu == cpu, true);
      },
      &active, terms.options);
  world.machine.hotplug().write_unlock();
  if (watch.done(error_of(outcome))) {
    watch.check(*outcome);
    watch.exactly(bits(active));
  } else if (outcome.error().code == StopErrc::kDeadline) {
    watch.none_ran();
  }
}

void stop_cpus(World& world, const CpuMask& cpus, const Terms& terms, bool only_try) {
  Watch watch(world, only_try ? "try_stop_cpus" : "stop_cpus", terms);
  const auto each = [&](StopContext& context) {
    return watch.run(context, {1u << context.cpu, false, watch.owner()}, false);
  };
  auto outcome = only_try ? world.machine.try_stop_cpus(cpus, each, terms.options)
                          : world.machine.stop_cpus(cpus, each, terms.options);
  if (watch.done(error_of(outcome), only_try ? kBusyIsFine : 0)) {
    watch.check(*outcome);
    watch.exactly(bits(cpus));
  }
}

void stop_one(World& world, CpuId cpu, const Terms& terms) {
  Watch watch(world, "stop_one_cpu", terms);
  const auto shot = [&](StopContext& context) {
    return watch.run(context, {1u << cpu, false, watch.owner()}, false);
  };
  auto result = world.machine.stop_one_cpu(cpu, shot, terms.options);
  if (watch.done(error_of(result))) {
    watch.check(*result);
    watch.exactly(1u << cpu);
  } else if (result.error().code == StopErrc::kDeadline) {
    watch.none_ran();
  }
}

void stop_two(World& world, CpuId cpu1, CpuId cpu2, const Terms& terms) {
  Watch watch(world, "stop_two_cpus", terms);
  const auto both = [&](StopContext& context) {
    return watch.run(context, {1u << cpu1 | 1u << cpu2, false, watch.owner()}, false);
  };
  auto result = world.machine.stop_two_cpus(cpu1, cpu2, both, terms.options);
  if (watch.done(error_of(result))) {
    watch.check(*result);
    if (watch.ran() != 1u << cpu1)
      Engine::get().fail("stop_two_cpus ran on %x", watch.ran());
  } else if (result.error().code == StopErrc::kDeadline) {
    watch.none_ran();
  }
}

void stop_one_nowait(World& world, CpuId cpu, Work& work) {
  Engine::get().note("stop_one_cpu_nowait of %u", cpu);
  const auto function = [](void* arg, CpuId on) noexcept -> stopper::Invocation {
    World& self = *static_cast<World*>(arg);
    ++self.nowait_ran;
    Engine::get().note("callback of stop_one_cpu_nowait on %u", on);
    if (!self.on_thread_of(on))
      Engine::get().fail("the callback of stop_one_cpu_nowait runs on a thread that is not vCPU %u's", on);
    const uint32_t cpus = (1u << on) & self.all_cpus(); // none: it is a worker
    use_for_a_while(self, {cpus, cpus == 0, self.new_owner()}, "stop_one_cpu_nowait");
    return {0, false};
  };
  ++world.nowait_queued;
  auto queued = world.machine.stop_one_cpu_nowait(cpu, function, &world, work);
  if (queued)
    return;
  --world.nowait_queued;
  const StopErrc code = queued.error().code;
  if (code != StopErrc::kWorkInUse && !(code == StopErrc::kNoSuchCpu && world.hotplug_goes_on) &&
      !(code == StopErrc::kEnded && world.closing))
    Engine::get().fail("stop_one_cpu_nowait fails: %s", stopper::to_string(code));
}

void service_run(World& world, const Terms& terms) {
  Watch watch(world, "service.run", terms);
  bool ran = false;
  auto outcome = world.service.run(
      [&](StopContext& context) {
        if (ran)
          Engine::get().fail("the callback of service.run runs twice");
        ran = true;
        use_for_a_while(world, world.everything(kServiceOwner), "service.run");
        if (context.cpu != kMaxCpus)
          Engine::get().fail("the callback of service.run is told of a vCPU");
        if (terms.manner == Manner::kThrows)
          throw 1;
        return watch.value(0);
      },
      terms.options);
  Engine::get().note("service.run: %s", outcome ? "done" : stopper::to_string(outcome.error().code));
  if (outcome) {
    if (!ran || terms.manner == Manner::kThrows || outcome->result != watch.value(0))
      Engine::get().fail("service.run gives a result that is not its callback's");
    return;
  }
  const StopErrc code = outcome.error().code;
  if (!(code == StopErrc::kDeadline && terms.options.deadline != kForever && !ran) &&
      !(code == StopErrc::kEnded && world.closing && !ran) &&
      !(code == StopErrc::kCallbackThrew && terms.manner == Manner::kThrows && ran))
    Engine::get().fail("service.run fails (callback %s): %s", ran ? "ran" : "did not run",
                       stopper::to_string(code));
}

void service_hold(World& world, const Terms& terms, unsigned runs_meanwhile) {
  Watch watch(world, "service.acquire_hold", terms);
  auto held = world.service.acquire_hold(terms.options);
  if (!watch.done(error_of(held)) || world.service_closed)
    return; // closing has given it back
  const World::Claim claim = world.everything(kServiceOwner);
  world.begin_claim(claim, "service.acquire_hold");
  ++world.service_claims;
  Engine::get().yield();
  for (unsigned n = 0; n < runs_meanwhile; ++n)
    service_run(world, {});
  if (world.service_closed)
    return;
  --world.service_claims;
  world.end_claim(claim);
  Engine::get().note("service.release_hold");
  if (!world.service.release_hold() && !world.service_closed)
    Engine::get().fail("a hold that was taken is not known any more");
}

void close_service(World& world) {
  Engine::get().note("service.close");
  world.service_closed = true;
  for (; world.service_claims > 0; --world.service_claims)
    world.end_claim(world.everything(kServiceOwner));
  world.service.close();
}

} // namespace stopvisor::sched
