// SPDX-License-Identifier: Apache-2.0
// The whole state of a vCPU, as KVM gives and takes it: what a reset goes back to.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <expected>
#include <vector>

#include "vmm/error.h"
#include "vmm/kvm_system.h"
#include "vmm/kvm_vcpu.h"

namespace stopvisor::vmm {

class VcpuState {
public:
  // Copies the state of `vcpu`. CONTEXT: the vCPU does not run. RETURNS: kFailed, naming the ioctl.
  [[nodiscard]] static std::expected<VcpuState, Error> save(const KvmVcpu& vcpu, const KvmSystem& system);
  // Puts it back, the TSC excepted: time goes on over a reset. CONTEXT and RETURNS as save().
  [[nodiscard]] std::expected<void, Error> restore(const KvmVcpu& vcpu) const;

private:
  VcpuState() = default;
  [[nodiscard]] std::expected<void, Error> save_msrs(int fd, const KvmSystem& system);
  [[nodiscard]] std::expected<void, Error> restore_msrs(int fd) const;

  kvm_mp_state mp_state_{};
  kvm_regs regs_{};
  kvm_sregs sregs_{};
  std::vector<std::byte> xsave_;
  kvm_xcrs xcrs_{};
  kvm_debugregs debugregs_{};
  kvm_lapic_state lapic_{};
  std::vector<kvm_msr_entry> msrs_;
  kvm_vcpu_events events_{};
};

} // namespace stopvisor::vmm
