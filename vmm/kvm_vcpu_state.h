// SPDX-License-Identifier: Apache-2.0
// The whole state of a vCPU, as KVM gives and takes it: what a reset goes back to.
#pragma once

#include <cstdint>
#include <expected>
#include <vector>

#include "vmm/error.h"
#include "vmm/kvm_system.h"
#include "vmm/kvm_vcpu.h"
#include "vmm/state/vcpu_values.h"

namespace stopvisor::vmm {

class VcpuState {
public:
  // Copies the state of `vcpu`. CONTEXT: the vCPU does not run. RETURNS: kFailed, naming the ioctl.
  [[nodiscard]] static std::expected<VcpuState, Error> save(const KvmVcpu& vcpu, const KvmSystem& system);
  // Puts it back, the TSC excepted: time goes on over a reset. CONTEXT and RETURNS as wake_vcpu().
  [[nodiscard]] std::expected<void, Error> restore(const KvmVcpu& vcpu) const;

  // The MSRs that make up the state of this vCPU: state_msrs_of().
  [[nodiscard]] const std::vector<uint32_t>& msrs() const noexcept { return msrs_; }
  // What the guest is told of its processor, as KVM has it.
  [[nodiscard]] const std::vector<kvm_cpuid_entry2>& cpuid() const noexcept { return values_.cpuid; }

private:
  VcpuState() = default;
  [[nodiscard]] std::expected<void, Error> restore_msrs(int fd) const;

  std::vector<uint32_t> msrs_;
  VcpuValues values_;
};

} // namespace stopvisor::vmm
