// SPDX-License-Identifier: Apache-2.0
// A device's own thread: it does what the guest asked for while the vCPUs go on, and comes to rest in every stop.
//
// It may write guest memory, so it is a participant like a vCPU: a stop that did without it would find memory
// changing under its callback. It is held after the vCPUs, when nobody can give it a new job, and always between
// two jobs; it is let go before them.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <string>
#include <thread>

#include "stopper/native.h"
#include "vmm/error.h"
#include "vmm/test_hooks.h"
#include "vmm/thread_priority.h"
#include "vmm/vm_life.h"
#include "vmm/worker_device.h"
#include "vmm/worker_sleep.h"

namespace stopvisor::vmm {

class DeviceWorker {
public:
  // What the threads of one VM share; all of it outlives the worker.
  struct Surroundings {
    stopper::StopMachine& machine;
    const VcpuHookPoint& hooks;
    VmLife& life;
  };

  // `name` (15 bytes at most) is also the thread's; `participant` its number, from machine.first_worker() on.
  // `device` outlives it.
  DeviceWorker(std::string name, stopper::CpuId participant, WorkerDevice& device,
               std::unique_ptr<WorkerSleep> sleep, Surroundings around);
  ~DeviceWorker(); // joins; the VM is ending then
  DeviceWorker(const DeviceWorker&) = delete;
  DeviceWorker& operator=(const DeviceWorker&) = delete;

  // Makes the thread. The caller makes it take part by machine.unpark(), before it can have a job.
  // CONTEXT: once; does not wait for the thread. RETURNS: kFailed where the host has no more threads.
  [[nodiscard]] std::expected<void, Error> start();
  // Returns once it can be kicked, and lifted. CONTEXT: after start(), before unpark(); blocks shortly.
  void await_start() const noexcept;
  // It does no job before. CONTEXT: any thread, once the hold is there that the VM is started with; does not block.
  void open_gate() noexcept;
  // CONTEXT: not the worker; blocks until the thread has left, which it does when the VM ends.
  void join();

  // There is a job. CONTEXT: any thread, after the job was put where do_job() finds it; does not block.
  void notify() noexcept;
  // Makes the thread look at its queue of works and at VmLife::ending(). CONTEXT: any thread, does not block.
  void kick() noexcept;
  // See ThreadPriority. CONTEXT: any thread, does not block.
  [[nodiscard]] stopper::Kick::Lift lift() noexcept { return priority_.lift(); }
  void restore() noexcept { priority_.restore(); }

  // For the device: a test may step in here. CONTEXT: the worker's thread, in do_job().
  void in_the_middle() const noexcept { around_.hooks.at(VcpuPoint::kInJob, participant_); }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] stopper::CpuId participant() const noexcept { return participant_; }
  // Live values, each by itself. CONTEXT: any thread.
  [[nodiscard]] pid_t thread_id() const noexcept { return priority_.thread_id(); } // 0: not running
  [[nodiscard]] uint64_t jobs_done() const noexcept { return jobs_done_.load(std::memory_order_relaxed); }

private:
  void run() noexcept;
  void loop() noexcept;

  const std::string name_;
  const stopper::CpuId participant_;
  WorkerDevice& device_;
  const std::unique_ptr<WorkerSleep> sleep_; // woken by jobs, kicks and the end alike
  const Surroundings around_;

  std::atomic<uint32_t> runs_{0};
  std::atomic<bool> open_{false};
  std::atomic<uint64_t> jobs_done_{0};
  ThreadPriority priority_;
  std::thread thread_;
};

} // namespace stopvisor::vmm
