// SPDX-License-Identifier: Apache-2.0
// What firmware leaves in a vCPU's model-specific registers before it starts a kernel, where KVM's values differ.
//
// There is no firmware here, and a kernel goes by what it finds: without MTRRs it has no PAT either, and without
// "fast strings" it does not use them.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace stopvisor::vmm {

inline constexpr uint32_t kMsrMiscEnable = 0x1a0;      // IA32_MISC_ENABLE
inline constexpr uint32_t kMsrMtrrDefaultType = 0x2ff; // IA32_MTRR_DEF_TYPE
inline constexpr uint32_t kMsrMtrrBase0 = 0x200;       // IA32_MTRR_PHYSBASE0
inline constexpr uint32_t kMsrMtrrMask0 = 0x201;       // IA32_MTRR_PHYSMASK0

struct MsrValue {
  uint32_t index = 0;
  uint64_t value = 0;
};

// The MTRRs: memory is write-back, the hole below 4 GiB uncached. `address_bits` is the CPU's physical address
// width (CPUID 0x80000008). Intel SDM volume 3, 12.11. CONTEXT: any thread.
[[nodiscard]] std::array<MsrValue, 3> firmware_mtrrs(unsigned address_bits) noexcept;

// Writes them, and the bit of IA32_MISC_ENABLE for fast strings, to a vCPU that has its CPUID. What a KVM refuses
// stays as it was: the kernel then says what it misses. CONTEXT: no other thread uses the vCPU.
void set_firmware_msrs(int vcpu_fd, unsigned address_bits);

} // namespace stopvisor::vmm
