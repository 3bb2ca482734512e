// SPDX-License-Identifier: Apache-2.0
// Whether this host has what a saved guest was told that its processor has.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <expected>
#include <span>

#include "vmm/error.h"

namespace stopvisor::vmm {

// `told`: the leaves of the saved vCPU; `supported`: those of one made here. Both as KVM_GET_CPUID2 has them: some
// KVMs give guests more than they say in KVM_GET_SUPPORTED_CPUID. Compares the leaves that hold feature bits, and
// the components of the XSAVE area. RETURNS: kRefused, naming the first feature that is lacking. CONTEXT: any
// thread.
[[nodiscard]] std::expected<void, Error> check_cpu_features(std::span<const kvm_cpuid_entry2> told,
                                                            std::span<const kvm_cpuid_entry2> supported);

} // namespace stopvisor::vmm
