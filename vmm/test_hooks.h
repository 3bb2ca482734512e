// SPDX-License-Identifier: Apache-2.0
// Where a test can step into the vCPU loop, a device worker's job and the kick: to delay, to block, to lose a
// signal.
//
// Kick races are lost in windows of nanoseconds. A test widens the window of its choice by installing hooks
// with Vm::use_hooks(); without hooks each point costs one atomic load of a pointer.
#pragma once

#include <atomic>
#include <cstdint>

namespace stopvisor::vmm {

// In the order in which a kick and the loop meet them.
enum class VcpuPoint : uint32_t {
  kBeforeSignal, // kick: the work is queued, the signal is not sent yet (the kicking thread)
  kAfterSignal,  // kick: the signal has been sent, or dropped
  kOutOfRun,     // loop: KVM_RUN has just returned
  kBeforeClear,  // loop: the exit was served, immediate_exit is not cleared yet
  kAfterClear,   // loop: immediate_exit is cleared, nobody has looked for work yet
  kAfterCheck,   // loop: there was no work; next is KVM_RUN
  // Of device workers:
  kBeforeSleep,  // the worker: nothing was to do; next is its wait
  kWorkerKicked, // kick: the worker has been woken (the kicking thread)
  kInJob,        // the worker is in the middle of a job: some of it is in guest memory already
};

// `cpu` is the participant's number. CONTEXT: called from participants' and from kicking threads, several at once.
// May block (that is the point); must not call the stopper.
class VcpuHooks {
public:
  virtual ~VcpuHooks() = default;
  virtual void at(VcpuPoint point, uint32_t cpu) noexcept = 0;
  // True: the signal about to be sent to `cpu` is lost.
  [[nodiscard]] virtual bool drop_signal(uint32_t /*cpu*/) noexcept { return false; }
};

// The place hooks are installed in. They must outlive every thread that may still call them: installed before
// Vm::start(), and kept until the Vm is gone (or replaced by null, and a full stop made after that).
class VcpuHookPoint {
public:
  void install(VcpuHooks* hooks) noexcept { hooks_.store(hooks, std::memory_order_release); } // T1
  void at(VcpuPoint point, uint32_t cpu) const noexcept {
    if (VcpuHooks* const hooks = hooks_.load(std::memory_order_acquire); hooks != nullptr) // pairs with T1
      hooks->at(point, cpu);
  }
  [[nodiscard]] bool drop_signal(uint32_t cpu) const noexcept {
    VcpuHooks* const hooks = hooks_.load(std::memory_order_acquire); // pairs with T1
    return hooks != nullptr && hooks->drop_signal(cpu);
  }

private:
  std::atomic<VcpuHooks*> hooks_{nullptr};
};

} // namespace stopvisor::vmm
