// SPDX-License-Identifier: Apache-2.0
// The whole state of a vCPU as plain values, in KVM's own structures, and the same as sections.
//
// docs/explanation/state.md lists what is in each section.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <vector>

#include "vmm/error.h"
#include "vmm/state/sections.h"

namespace stopvisor::vmm {

struct VcpuValues {
  std::vector<kvm_cpuid_entry2> cpuid;
  kvm_mp_state mp_state{};
  kvm_vcpu_events events{};
  kvm_regs regs{};
  kvm_sregs sregs{};
  // Page directory pointers that are in registers (PAE paging), where KVM tells (KVM_GET_SREGS2).
  bool has_pdptrs = false;
  std::array<uint64_t, 4> pdptrs{};
  std::vector<std::byte> xsave; // 4096 bytes at least, as KVM_GET_XSAVE2 gives it
  kvm_xcrs xcrs{};
  kvm_debugregs debugregs{};
  kvm_lapic_state lapic{};
  std::vector<kvm_msr_entry> msrs; // without the TSC
  uint64_t tsc = 0;                // the guest's, at the instant of the state
  uint32_t tsc_khz = 0;            // 0: KVM does not tell
};

// Sets the processor priority (PPR) to what the task priority and the interrupts in service make it: Intel SDM
// volume 3, 11.8.3.1. KVM reckons it anew before it is used, but not for a local APIC that it was just given
// (KVM_SET_LAPIC looks at the interrupts in service too late): so a machine that was restored and has not run yet
// would not be saved as it was. CONTEXT: any thread.
void derive_processor_priority(kvm_lapic_state& lapic) noexcept;

// Adds the sections of vCPU `cpu`. CONTEXT: any thread.
void encode_vcpu(const VcpuValues& values, uint32_t cpu, std::vector<StateSection>& to);
// Takes them. RETURNS: kFailed, naming the section that cannot be. Whether KVM takes the values is for it to say.
[[nodiscard]] std::expected<std::vector<kvm_cpuid_entry2>, Error> decode_cpuid(StateSections& from, uint32_t cpu);
[[nodiscard]] std::expected<VcpuValues, Error> decode_vcpu(StateSections& from, uint32_t cpu);

} // namespace stopvisor::vmm
