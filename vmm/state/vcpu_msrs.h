// SPDX-License-Identifier: Apache-2.0
// The model-specific registers of a vCPU: which of them make up its state, and how they are read and written in
// bulk.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <vector>

#include "vmm/error.h"
#include "vmm/kvm_system.h"

namespace stopvisor::vmm {

// CONTEXT, all of them: the vCPU behind `fd` does not run. RETURNS, all: kFailed.

// Those of KVM's list, the MTRRs, and the banks of machine checks, that KVM gives for this vCPU, but for the TSC
// and those that are clocks of another kind; by rising number.
[[nodiscard]] std::expected<std::vector<uint32_t>, Error> state_msrs_of(int fd, const KvmSystem& system);
// Adds the values of `indices`. RETURNS: how many of them KVM gave, the first ones.
[[nodiscard]] std::expected<size_t, Error> get_msrs(int fd, std::span<const uint32_t> indices,
                                                    std::vector<kvm_msr_entry>& to);
// RETURNS: the error names the first that KVM does not take. One that it gives but does not take back is as well
// where it has the value already.
[[nodiscard]] std::expected<void, Error> set_msrs(int fd, std::span<const kvm_msr_entry> msrs);

} // namespace stopvisor::vmm
