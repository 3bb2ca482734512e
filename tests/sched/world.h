// SPDX-License-Identifier: Apache-2.0
// A virtual machine made of fibers: vCPU threads that mirror the VMM's run loop, device workers, guest memory.
//
// It knows at each moment who may touch guest memory. Whoever claims it (a callback, a hold) states which vCPUs
// and workers must be at rest; a guest step of one of them meanwhile, or a claim while one is in the guest, is
// the violation this whole folder looks for.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "stopper/stop_machine.h"
#include "stopper/stop_service.h"
#include "tests/sched/sched_platform.h"

namespace stopvisor::stopper {
extern template class BasicStopMachine<sched::SchedPlatform>; // in machine.cpp
extern template class BasicStopService<sched::SchedPlatform>;
} // namespace stopvisor::stopper

namespace stopvisor::sched {

using stopper::CpuId;
using stopper::CpuMask;
using stopper::kMaxCpus;
using stopper::StopContext;
using stopper::StopEnd;
using stopper::StopErrc;
using stopper::StopError;
using stopper::StopOptions;
using stopper::StopReport;
using Machine = stopper::BasicStopMachine<SchedPlatform>;
using Service = stopper::BasicStopService<SchedPlatform>;
using Stop = stopper::BasicStop<SchedPlatform>;
using Work = stopper::BasicWork<SchedPlatform>;

// Plain accesses to guest memory: nothing but the stopper orders them.
uint64_t read_guest(const uint64_t& word) noexcept;
void write_guest(uint64_t& word, uint64_t value) noexcept;

inline constexpr CpuId kMostCpus = 5;
inline constexpr CpuId kMostWorkers = 2;

class World final : public stopper::Kick {
public:
  struct Shape {
    CpuId cpus = 2;
    CpuId workers = 0;
    unsigned guest_steps = 1; // until the guest halts
    uint32_t offline = 0;     // a bit for each vCPU that starts offline
  };

  explicit World(const Shape& shape);
  ~World() override = default;

  void kick(CpuId cpu) noexcept override;
  // As the VMM's threads do it: lifted from a kick until the guest or restore(), and counted.
  Lift lift(CpuId cpu) noexcept override;
  void restore(CpuId cpu) noexcept override;

  // What is claimed: these vCPUs, and the workers, are at rest. Claims of one owner may overlap.
  struct Claim {
    uint32_t cpus;
    bool workers;
    int owner;
  };
  void begin_claim(const Claim& claim, const char* who);
  void end_claim(const Claim& claim);
  // Writes what is claimed, in two steps that a running guest would see torn.
  void use(const Claim& claim);
  [[nodiscard]] Claim everything(int owner) const { return {all_cpus(), true, owner}; }
  [[nodiscard]] uint32_t all_cpus() const { return (1u << shape_.cpus) - 1; }
  int new_owner() { return ++owners_; }

  // Hotplug. CONTEXT: a client; one at a time.
  void take_offline(CpuId cpu);
  [[nodiscard]] bool bring_online(CpuId cpu, TimePoint deadline = kForever);
  [[nodiscard]] bool is_online(CpuId cpu) const { return members_[cpu].online; }
  [[nodiscard]] CpuId count() const { return shape_.cpus + shape_.workers; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  // Which fiber is the thread of `cpu`; and whether the running fiber is that thread.
  [[nodiscard]] bool on_thread_of(CpuId cpu) const {
    return cpu < count() && members_[cpu].online && members_[cpu].fiber == Engine::get().current();
  }

  // From now on the next kick of `cpu` is lost; the thread of `cpu` sleeps before it looks at its queue again.
  void lose_a_kick(CpuId cpu) { members_[cpu].lose_kicks = 1; }
  void get_stuck(CpuId cpu, TimePoint until) { members_[cpu].stuck_until = until; }

  // Every scenario's end: a full stop works, everybody was released and can leave, nothing is left over.
  void finish(bool closed);
  // A report must agree with itself.
  void check(const StopReport& report);

  Machine machine;
  Service service{machine};

  // What goes on in this schedule, and so which errors are none.
  bool rekicks_allowed = false;
  bool hotplug_goes_on = false;
  bool closing = false;
  // Holds of the service that clients have claimed; close() gives them back.
  uint32_t service_claims = 0;
  bool service_closed = false;
  uint32_t nowait_queued = 0;
  uint32_t nowait_ran = 0;
  std::array<Work, 4> works; // for stop_one_cpu_nowait(): one a client, a work has one owner

private:
  struct Member { // a vCPU, or a device worker
    unsigned fiber = kNobody;
    bool online = false;
    bool leave = false;
    bool signal_pending = false;
    bool immediate_exit = false;
    bool in_guest = false; // a worker: serving a request
    bool resting = false;  // halted, or waiting for requests
    bool request = false;
    bool kicked = false; // since it was in the guest
    bool lifted = false;
    uint32_t restores_owed = 0;
    uint32_t lose_kicks = 0;
    TimePoint stuck_until{};
    Object signal;
    Object memory;
    std::array<uint64_t, 2> words{}; // equal, unless somebody tears them
    uint32_t claims = 0;
    int claimed_by = 0;
  };

  void start(CpuId cpu);
  void run_vcpu(CpuId cpu);
  void run_worker(CpuId cpu);
  bool take_signal(Member& self, Place where = Place::current());
  void kvm_run(CpuId cpu);
  void guest_step(CpuId cpu);
  void serve_request(CpuId worker);
  void check_unclaimed(const Member& self, CpuId cpu, const char* what);
  void stall(Member& self);
  void kick_for_sure(Member& member);
  template <class Visit>
  void for_each(const Claim& claim, Visit visit) {
    for (CpuId cpu = 0; cpu < count(); ++cpu)
      if (cpu < shape_.cpus ? (claim.cpus >> cpu & 1) != 0 : claim.workers)
        visit(members_[cpu], cpu);
  }

  Shape shape_;
  std::array<Member, kMostCpus + kMostWorkers> members_;
  uint64_t stamp_ = 0;
  int owners_ = 1; // 1 is the service
};

inline constexpr int kServiceOwner = 1;

} // namespace stopvisor::sched
