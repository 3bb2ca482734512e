// SPDX-License-Identifier: Apache-2.0
// Asks KVM for the whole state of a vCPU, and gives it to another one. docs/explanation/state.md says why in this
// order.
#pragma once

#include <cstdint>
#include <expected>
#include <span>

#include "vmm/error.h"
#include "vmm/kvm_system.h"
#include "vmm/kvm_vcpu.h"
#include "vmm/state/vcpu_values.h"

namespace stopvisor::vmm {

// CONTEXT, all of them: the vCPU does not run (under a stop, or before it starts).

// Everything but the TSC. `msrs`: the indices to read, as state_msrs_of() gave them. RETURNS: kFailed, naming the
// ioctl.
[[nodiscard]] std::expected<VcpuValues, Error> read_vcpu(const KvmVcpu& vcpu, const KvmSystem& system,
                                                         std::span<const uint32_t> msrs);
// Gives everything to a vCPU that has never run, but for the TSC, whose value must be set by then.
// RETURNS: kFailed, naming the ioctl or the MSR that KVM does not take.
[[nodiscard]] std::expected<void, Error> write_vcpu(const KvmVcpu& vcpu, const KvmSystem& system,
                                                    const VcpuValues& values);

} // namespace stopvisor::vmm
