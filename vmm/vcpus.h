// SPDX-License-Identifier: Apache-2.0
// The vCPUs of a VM: those it was started with, and those that were added since.
//
// There is room for all that are possible, and a vCPU stays where it is for the VM's whole life, online or not;
// only their number grows. So whoever reads (status, kicks, the end of the VM) needs no lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "vmm/kvm_vcpu_state.h"
#include "vmm/vcpu_thread.h"

namespace stopvisor::vmm {

struct Vcpu {
  Vcpu(uint32_t cpu, KvmVcpu vcpu, VcpuState its_initial, VcpuSurroundings around)
      : initial(std::move(its_initial)), thread(cpu, std::move(vcpu), std::move(around)) {}

  const VcpuState initial; // before the kernel's entry is set: what a reset, and coming online again, go back to
  VcpuThread thread;
};

class Vcpus {
public:
  explicit Vcpus(uint32_t possible) : places_(possible) {}

  [[nodiscard]] uint32_t possible() const noexcept { return static_cast<uint32_t>(places_.size()); }
  // vCPUs 0 to present() - 1 exist. CONTEXT: any thread.
  [[nodiscard]] uint32_t present() const noexcept { return present_.load(std::memory_order_acquire); } // P1
  // `cpu` is below present(), or is the caller's own next().
  [[nodiscard]] Vcpu& operator[](uint32_t cpu) const noexcept { return *places_[cpu]; }

  // The vCPU that publish() will show, null where it is not made yet. It may be kept from an attempt that failed:
  // KVM does not take a vCPU back. CONTEXT: one thread at a time, and present() < possible().
  [[nodiscard]] std::unique_ptr<Vcpu>& next() noexcept {
    return places_[present_.load(std::memory_order_relaxed)]; // changed under the same rule
  }
  // next() exists from now on. CONTEXT: as next(), and before the vCPU can run guest code.
  // Either the end of the VM sees the vCPU (present_at_end()) and kicks it, or it sees that the VM ends when it
  // looks before it enters the guest: two read-modify-writes of one word have an order.
  void publish() noexcept { present_.fetch_add(1, std::memory_order_acq_rel); } // P1
  [[nodiscard]] uint32_t present_at_end() noexcept {
    return present_.fetch_add(0, std::memory_order_acq_rel);
  } // P1

private:
  std::vector<std::unique_ptr<Vcpu>> places_; // fixed size; a place is filled once, before it is published
  std::atomic<uint32_t> present_{0};
};

} // namespace stopvisor::vmm
