// SPDX-License-Identifier: Apache-2.0
// What CPUID tells a guest: what KVM supports, with this machine's APIC ids and topology.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <vector>

#include "vmm/kvm_system.h"

namespace stopvisor::vmm {

// The leaves of vCPU `cpu` of `cpus` possible ones: one package, one thread a core, APIC id = `cpu`. Hypervisor
// leaves and feature bits are KVM's own (KVM_GET_SUPPORTED_CPUID). CONTEXT: any thread, does not block.
[[nodiscard]] std::vector<kvm_cpuid_entry2> guest_cpuid(const KvmSystem& system, uint32_t cpu, uint32_t cpus);

} // namespace stopvisor::vmm
