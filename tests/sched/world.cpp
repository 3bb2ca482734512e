// SPDX-License-Identifier: Apache-2.0
#include "tests/sched/world.h"

#include <algorithm>
#include <cstdio>

namespace stopvisor::sched {

World::World(const Shape& shape) : machine(shape.cpus, *this, shape.workers), shape_(shape) {
  for (CpuId cpu = 0; cpu < count(); ++cpu)
    if ((shape.offline >> cpu & 1) == 0 && !bring_online(cpu))
      Engine::get().fail("the machine could not be set up");
}

// ---- the threads --------------------------------------------------------------------------------------------

void World::start(CpuId cpu) {
  Member& self = members_[cpu];
  self.online = true;
  self.leave = self.signal_pending = self.immediate_exit = self.resting = false;
  self.kicked = self.lifted = false;
  char name[16];
  const bool vcpu = cpu < shape_.cpus;
  std::snprintf(name, sizeof name, "%s%u", vcpu ? "vcpu" : "worker", vcpu ? cpu : cpu - shape_.cpus);
  self.fiber = Engine::get().spawn(name, [this, cpu, vcpu] { vcpu ? run_vcpu(cpu) : run_worker(cpu); });
}

// The signal handler: runs when a signal is pending and the thread is looked at here. It writes its own thread's
// immediate_exit, which only run_vcpu() and kvm_run() read: so these are the only places where it matters when
// it runs. RETURNS: whether a signal was pending.
bool World::take_signal(Member& self, Place where) {
  Engine& engine = Engine::get();
  engine.step(self.signal, Access::kRead, "signals?", where);
  if (!self.signal_pending)
    return false;
  if (!self.in_guest && engine.toss(4) == 1)
    return false; // sent, but still on its way
  self.signal_pending = false;
  self.immediate_exit = true;
  engine.note("the handler sets immediate_exit");
  return true;
}

// The design's first rule: clear immediate_exit, then look for work, then KVM_RUN.
void World::run_vcpu(CpuId cpu) {
  Member& self = members_[cpu];
  machine.bind_thread(cpu);
  for (;;) {
    stall(self);
    take_signal(self);
    self.immediate_exit = false;
    if (machine.should_run(cpu)) {
      machine.note_out(cpu, 7);
      machine.run_works(cpu);
      continue;
    }
    if (self.leave) // set before the kick that made us look
      break;
    kvm_run(cpu);
  }
  machine.park(cpu);
  machine.unbind_thread();
}

void World::kvm_run(CpuId cpu) {
  Engine& engine = Engine::get();
  Member& self = members_[cpu];
  take_signal(self);
  if (self.immediate_exit || self.signal_pending) // KVM_RUN looks for signals before it enters the guest
    return;
  check_unclaimed(self, cpu, "enters the guest");
  self.kicked = self.lifted = false; // it lowers itself
  engine.note("enters the guest");
  self.in_guest = true;
  for (unsigned instruction = 0; !self.immediate_exit; take_signal(self)) {
    if (instruction++ < shape_.guest_steps) {
      guest_step(cpu);
      continue;
    }
    if (self.signal_pending)
      continue;
    self.resting = true; // HLT
    engine.block(&self, kForever, "HLT", Place::current());
    self.resting = false;
  }
  self.in_guest = false;
  engine.note("leaves the guest");
}

// One stay in the guest sees both words the same: whoever writes them does so while it is out.
void World::guest_step(CpuId cpu) {
  Engine& engine = Engine::get();
  Member& self = members_[cpu];
  engine.step(self.memory, Access::kRead, "guest reads");
  check_unclaimed(self, cpu, "reads memory");
  const uint64_t first = read_guest(self.words[0]);
  engine.step(self.memory, Access::kRead, "guest reads");
  check_unclaimed(self, cpu, "reads memory");
  const uint64_t second = read_guest(self.words[1]);
  if (second != first)
    engine.fail("vCPU %u sees a torn write: %llu and %llu", cpu, static_cast<unsigned long long>(first),
                static_cast<unsigned long long>(second));
  if (shape_.workers > 0) { // a doorbell
    Member& worker = members_[shape_.cpus + cpu % shape_.workers];
    engine.step(worker.signal, Access::kWrite, "guest rings the doorbell");
    worker.request = true;
    if (worker.resting)
      engine.unblock_fiber(worker.fiber);
  }
}

void World::run_worker(CpuId cpu) {
  Engine& engine = Engine::get();
  Member& self = members_[cpu];
  machine.bind_thread(cpu);
  for (;;) {
    stall(self);
    engine.step(self.signal, Access::kWrite, "kicked?");
    self.signal_pending = false;
    if (machine.should_run(cpu)) {
      machine.note_out(cpu, 8);
      machine.run_works(cpu);
      continue;
    }
    engine.step(self.signal, Access::kRead, "requests?");
    if (self.signal_pending)
      continue;
    if (self.leave)
      break;
    if (self.request) {
      serve_request(cpu);
      continue;
    }
    if (!machine.rest(cpu))
      continue;
    engine.step(self.signal, Access::kRead, "anything meanwhile?");
    if (!self.signal_pending && !self.request && !self.leave) {
      self.resting = true;
      engine.block(&self, kForever, "waiting for requests", Place::current());
      self.resting = false;
    }
    machine.rise(cpu);
  }
  machine.park(cpu);
  machine.unbind_thread();
}

void World::serve_request(CpuId worker) {
  Engine& engine = Engine::get();
  Member& self = members_[worker];
  self.request = false;
  check_unclaimed(self, worker, "serves a request");
  self.in_guest = true;
  const uint64_t stamp = ++stamp_;
  for (const size_t n : {0, 1}) {
    engine.step(self.memory, Access::kWrite, "worker writes");
    check_unclaimed(self, worker, "writes memory");
    write_guest(self.words[n], stamp);
  }
  self.in_guest = false;
}

void World::stall(Member& self) {
  if (self.stuck_until == TimePoint{} || self.stuck_until <= Engine::get().now())
    return;
  Engine::get().note("is stuck");
  Engine::get().sleep_until(self.stuck_until);
}

void World::kick_for_sure(Member& member) {
  member.signal_pending = true;
  if (member.resting)
    Engine::get().unblock_fiber(member.fiber);
}

void World::kick(CpuId cpu) noexcept {
  Member& member = members_[cpu];
  Engine::get().step(member.signal, Access::kWrite, "kick");
  Engine::get().note("of %u", cpu);
  member.kicked = true;
  if (member.lose_kicks > 0) {
    --member.lose_kicks;
    Engine::get().note("is lost");
    return;
  }
  kick_for_sure(member);
}

stopper::Kick::Lift World::lift(CpuId cpu) noexcept {
  Engine::get().step(members_[cpu].signal, Access::kWrite, "lift");
  Engine::get().note("of %u", cpu);
  Member& member = members_[cpu];
  if (!member.online || !member.kicked || member.lifted)
    return Lift::kNotNeeded;
  member.lifted = true;
  ++member.restores_owed;
  return Lift::kLifted;
}

void World::restore(CpuId cpu) noexcept {
  Member& member = members_[cpu];
  Engine::get().step(member.signal, Access::kWrite, "restore");
  Engine::get().note("of %u", cpu);
  if (member.restores_owed == 0)
    Engine::get().fail("vCPU %u is lowered, and nobody has lifted it", cpu);
  --member.restores_owed;
  member.lifted = false;
}

// ---- hotplug ----------------------------------------------------------------------------------------------

void World::take_offline(CpuId cpu) {
  Member& member = members_[cpu];
  Engine::get().step(member.signal, Access::kWrite, "asks to leave");
  member.leave = true;
  kick_for_sure(member);
  Engine::get().join(member.fiber);
  member.online = false;
}

bool World::bring_online(CpuId cpu, TimePoint deadline) {
  // Online first: from then on stops wait for the thread, which enters its guest only as a participant.
  auto done = machine.unpark(cpu, deadline);
  if (!done)
    return false;
  start(cpu);
  return true;
}

// ---- who may touch guest memory -----------------------------------------------------------------------------

void World::check_unclaimed(const Member& self, CpuId cpu, const char* what) {
  if (self.claims > 0)
    Engine::get().fail("%s %u %s while it is held (by stop %d)", cpu < shape_.cpus ? "vCPU" : "worker", cpu, what,
                       self.claimed_by);
}

void World::begin_claim(const Claim& claim, const char* who) {
  for_each(claim, [&](Member& member, CpuId cpu) {
    if (member.in_guest)
      Engine::get().fail("%s runs while participant %u is running", who, cpu);
    if (member.claims > 0 && member.claimed_by != claim.owner)
      Engine::get().fail("%s runs while participant %u is held for stop %d", who, cpu, member.claimed_by);
    ++member.claims;
    member.claimed_by = claim.owner;
    Engine::get().also(member.memory, Access::kWrite);
  });
}

void World::end_claim(const Claim& claim) {
  for_each(claim, [](Member& member, CpuId) {
    --member.claims;
    Engine::get().also(member.memory, Access::kWrite);
  });
}

void World::use(const Claim& claim) {
  Object step;
  const uint64_t stamp = ++stamp_;
  for (const size_t word : {0, 1}) {
    Engine::get().step(step, Access::kRead, word == 0 ? "writes word 0 of all" : "writes word 1 of all");
    for_each(claim, [&](Member& member, CpuId) {
      write_guest(member.words[word], stamp);
      Engine::get().also(member.memory, Access::kWrite);
    });
  }
}

// ---- the end --------------------------------------------------------------------------------------------------

void World::check(const StopReport& report) {
  Engine& engine = Engine::get();
  if (report.end == StopEnd::kNone)
    return;
  if (report.rekicks != 0 && !rekicks_allowed)
    engine.fail("kicks were repeated though none was lost");
  if (report.end == StopEnd::kAborted && report.stragglers.empty() && report.all_held_ns != 0)
    engine.fail("an aborted stop has a time at which all were held");
  // vCPUs come to rest before the workers, and are let go after them.
  int64_t vcpus_held = 0, vcpus_released = INT64_MAX;
  for (const auto& one : report.participants)
    if (!one.worker) {
      vcpus_held = std::max(vcpus_held, one.held_ns);
      vcpus_released = std::min(vcpus_released, one.released_ns);
    }
  for (const auto& one : report.participants) {
    const bool came = one.held_ns != 0;
    if (report.end == StopEnd::kAborted) {
      if (!one.worker && came == report.stragglers.test(one.cpu))
        engine.fail("vCPU %u %s and is %sa straggler", one.cpu, came ? "came" : "did not come", came ? "" : "not ");
      continue;
    }
    if (!came || one.held_ns > report.all_held_ns || one.released_ns < report.exit_ns ||
        one.released_ns > report.left_ns)
      engine.fail("participant %u was not held during the stop that the report tells of", one.cpu);
    if (one.worker && (one.held_ns < vcpus_held || one.released_ns > vcpus_released))
      engine.fail("worker %u was held before, or released after, a vCPU", one.cpu - shape_.cpus);
  }
}

void World::finish(bool closed) {
  Engine& engine = Engine::get();
  engine.stop_exploring();
  for (Member& member : members_)
    member.lose_kicks = 0;
  if (!closed) {
    auto stop = machine.hold();
    if (!stop)
      engine.fail("the final stop fails: %s", stopper::to_string(stop.error().code));
    const Claim claim = everything(new_owner());
    begin_claim(claim, "the final stop");
    use(claim);
    end_claim(claim);
    stop->release();
    check(machine.last_report());
  }
  if (service.holds() != 0 || service.waiting() != 0)
    engine.fail("the service still counts %u holds and %u waiting", service.holds(), service.waiting());
  for (CpuId cpu = 0; cpu < count(); ++cpu)
    if (members_[cpu].online)
      take_offline(cpu);
  for (CpuId cpu = 0; cpu < count(); ++cpu)
    if (members_[cpu].restores_owed != 0)
      engine.fail("participant %u was lifted and nobody lowered it", cpu);
  if (nowait_ran != nowait_queued)
    engine.fail("%u works were queued without waiting, %u ran", nowait_queued, nowait_ran);
}

} // namespace stopvisor::sched
