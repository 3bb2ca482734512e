// SPDX-License-Identifier: Apache-2.0
// Guest memory that KVM itself reads or writes for a vCPU: before the guest's first instruction, and after it.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/address.h"
#include "vmm/state/vcpu_values.h"

namespace stopvisor::vmm {

struct KvmPlace {
  Gpa begin;
  uint64_t bytes = 0;
};

// A guest may name any place, memory or not. Page tables, the stack and code are the guest's to touch; but the page
// directory pointers of PAE paging are read as KVM is given CR3 (Intel SDM volume 3, 4.4.1). CONTEXT: any thread.
[[nodiscard]] std::vector<KvmPlace> kvm_places_of(const VcpuValues& values);

} // namespace stopvisor::vmm
