// SPDX-License-Identifier: Apache-2.0
// A crew of plain threads that stand for vCPUs and device workers, so that the stopper is tested without KVM.
//
// Each vCPU thread "runs the guest": it writes plain, unsynchronised memory that all share by turns, which only a
// correct stop may touch from outside. Under ThreadSanitizer any overlap is a report.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "stopper/native.h"

namespace stopvisor::stopper::testing {

class Crew : public Kick {
public:
  // Workers that have nothing to do say so where `workers_rest`, and are then passed by.
  explicit Crew(CpuId cpus, CpuId workers = 0, bool workers_rest = false)
      : machine(cpus, *this, workers), members_(std::make_unique<Member[]>(cpus + workers)), count_(cpus + workers),
        workers_rest_(workers_rest) {
    for (CpuId cpu = 0; cpu < count_; ++cpu)
      start(cpu);
  }
  ~Crew() override {
    for (CpuId cpu = 0; cpu < count_; ++cpu)
      finish(cpu);
  }

  void kick(CpuId cpu) noexcept override {
    Member& member = members_[cpu];
    if (member.drop_kicks.load(std::memory_order_relaxed) > 0) { // a counter of its own
      member.drop_kicks.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
    member.kicks.fetch_add(1, std::memory_order_release); // pairs with run()
    member.kicks.notify_all();
  }

  Lift lift(CpuId cpu) noexcept override {
    if (!may_lift.load(std::memory_order_relaxed)) // set before the stop that reads it
      return Lift::kRefused;
    members_[cpu].lifted.fetch_add(1, std::memory_order_release);
    members_[cpu].lifted.notify_all();
    return Lift::kLifted;
  }
  void restore(CpuId cpu) noexcept override { members_[cpu].lifted.fetch_sub(1, std::memory_order_release); }
  [[nodiscard]] int lifted(CpuId cpu) const { return members_[cpu].lifted.load(std::memory_order_acquire); }
  void await_lift(CpuId cpu) const { members_[cpu].lifted.wait(0, std::memory_order_acquire); }
  std::atomic<bool> may_lift{true};

  // Gives a worker a request.
  void ring(CpuId cpu) { kick_for_sure(cpu); }

  // Brings `cpu` online with a thread of its own.
  void start(CpuId cpu) {
    members_[cpu].leave.store(0, std::memory_order_relaxed); // the thread does not exist yet
    // Online first: from then on stops wait for the thread, which enters its guest only as a participant.
    if (!machine.unpark(cpu))
      std::abort();
    members_[cpu].thread = std::thread([this, cpu] { run(cpu); });
  }
  // Takes `cpu` offline and joins its thread.
  void finish(CpuId cpu) {
    if (!members_[cpu].thread.joinable())
      return;
    unblock(cpu);
    members_[cpu].leave.store(1, std::memory_order_release);
    kick_for_sure(cpu);
    members_[cpu].thread.join();
  }

  // Keeps `cpu`'s thread from looking at its queue, as a vCPU thread stuck in a system call would be. Returns
  // when it is stuck.
  void block(CpuId cpu) {
    members_[cpu].blocked.store(1, std::memory_order_release);
    kick_for_sure(cpu);
    members_[cpu].stuck.wait(0, std::memory_order_acquire);
  }
  void unblock(CpuId cpu) {
    members_[cpu].blocked.store(0, std::memory_order_release);
    members_[cpu].blocked.notify_all();
  }
  void drop_kicks(CpuId cpu, int count) { members_[cpu].drop_kicks.store(count, std::memory_order_relaxed); }

  // How often `cpu` has entered its guest.
  [[nodiscard]] uint64_t entries(CpuId cpu) const { return members_[cpu].entries.load(std::memory_order_acquire); }
  StopMachine machine;
  std::vector<uint64_t> memory = std::vector<uint64_t>(64); // "guest memory": vCPU n writes word n

private:
  struct alignas(64) Member {
    std::thread thread;
    std::atomic<uint32_t> kicks{0};
    std::atomic<uint32_t> leave{0};
    std::atomic<uint32_t> blocked{0};
    std::atomic<uint32_t> stuck{0};
    std::atomic<int> drop_kicks{0};
    std::atomic<int> lifted{0};
    std::atomic<uint64_t> entries{0};
  };

  void kick_for_sure(CpuId cpu) {
    members_[cpu].kicks.fetch_add(1, std::memory_order_release);
    members_[cpu].kicks.notify_all();
  }

  void run(CpuId cpu) {
    Member& member = members_[cpu];
    machine.bind_thread(cpu);
    for (;;) {
      const uint32_t seen = member.kicks.load(std::memory_order_acquire); // "clear immediate_exit"
      if (member.blocked.load(std::memory_order_acquire) != 0) {
        member.stuck.store(1, std::memory_order_release);
        member.stuck.notify_all();
        member.blocked.wait(1, std::memory_order_acquire);
        member.stuck.store(0, std::memory_order_release);
      }
      if (machine.should_run(cpu)) {
        machine.note_out(cpu, 7);
        machine.run_works(cpu);
        continue;
      }
      if (member.leave.load(std::memory_order_acquire) != 0)
        break;
      memory[cpu] += 1; // plain: the guest runs, or the worker serves a request
      member.entries.fetch_add(1, std::memory_order_release);
      member.entries.notify_all();
      if (cpu >= machine.possible_cpus() && workers_rest_) {
        if (machine.rest(cpu)) {
          member.kicks.wait(seen, std::memory_order_acquire);
          machine.rise(cpu);
        }
      } else if (cpu >= machine.possible_cpus() || member.entries.load(std::memory_order_relaxed) % 64 == 0)
        member.kicks.wait(seen, std::memory_order_acquire); // HLT, or a worker with nothing to do
    }
    machine.park(cpu);
    machine.unbind_thread();
  }

  std::unique_ptr<Member[]> members_;
  CpuId count_;
  const bool workers_rest_;
};

} // namespace stopvisor::stopper::testing
