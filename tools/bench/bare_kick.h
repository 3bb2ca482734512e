// SPDX-License-Identifier: Apache-2.0
// The floor under every stop: how long a bare signal takes to bring N vCPUs out of KVM_RUN, as a waiting thread
// sees it.
//
// The same guest runs on the same KVM, but its threads know nothing of the stopper: a signal, an atomic counter, a
// futex. No stop can be faster than this.
#pragma once

#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <thread>
#include <vector>

#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm_system.h"
#include "vmm/kvm_vcpu.h"
#include "vmm/kvm_vm.h"

namespace stopvisor::tools {

class BareKick {
public:
  // Boots the probe guest with the gap scenario on `cpus` vCPUs; they run when this returns.
  // RETURNS: what KVM or the host refuses. CONTEXT: blocks.
  [[nodiscard]] static std::expected<std::unique_ptr<BareKick>, vmm::Error> boot(uint32_t cpus);
  ~BareKick();
  BareKick(const BareKick&) = delete;
  BareKick& operator=(const BareKick&) = delete;

  // Kicks all vCPUs and waits until each is out. RETURNS: the time from before the first signal, in nanoseconds.
  // CONTEXT: one thread; alternates with let_go().
  int64_t kick_all();
  void let_go();
  [[nodiscard]] const vmm::GuestMemory& memory() const noexcept { return memory_; }

private:
  explicit BareKick(vmm::GuestMemory memory) : memory_(std::move(memory)) {}
  [[nodiscard]] std::expected<void, vmm::Error> set_up(uint32_t cpus);
  void run(uint32_t cpu) noexcept;

  vmm::GuestMemory memory_;
  std::unique_ptr<vmm::KvmSystem> system_;
  std::unique_ptr<vmm::KvmVm> vm_;
  std::vector<vmm::KvmVcpu> vcpus_;
  std::vector<std::atomic<pid_t>> tids_;
  std::atomic<uint32_t> out_{0};  // vCPUs out since the last let_go()
  std::atomic<uint32_t> done_{0}; // 1: all of them
  std::atomic<uint32_t> turn_{0}; // raised by let_go()
  std::atomic<bool> ending_{false};
  std::vector<std::thread> threads_;
};

} // namespace stopvisor::tools
