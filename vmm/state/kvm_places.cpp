// SPDX-License-Identifier: Apache-2.0
#include "vmm/state/kvm_places.h"

#include <asm/kvm_para.h>

namespace stopvisor::vmm {
namespace {

// Linux Documentation/virt/kvm/x86/msr.rst: what is at the place that the register names, and which of its bits say
// something else. Of most of them bit 0 says whether there is a place.
struct Register {
  uint32_t msr;
  uint64_t bytes;
  uint64_t flags;
};
constexpr Register kPlaces[] = {
    {MSR_KVM_WALL_CLOCK, 12, 0},      {MSR_KVM_WALL_CLOCK_NEW, 12, 0}, {MSR_KVM_SYSTEM_TIME, 32, 1},
    {MSR_KVM_SYSTEM_TIME_NEW, 32, 1}, {MSR_KVM_STEAL_TIME, 64, 0x3f},  {MSR_KVM_ASYNC_PF_EN, 64, 0x3f},
    {MSR_KVM_PV_EOI_EN, 4, 3},
};

} // namespace

std::vector<KvmPlace> kvm_places_of(const VcpuValues& values) {
  std::vector<KvmPlace> places{{Gpa{values.sregs.cr3 & ~uint64_t{0x1f}}, 32}};
  for (const kvm_msr_entry& msr : values.msrs)
    for (const Register& known : kPlaces)
      if (msr.index == known.msr && msr.data != 0 && (known.flags == 0 || (msr.data & 1) != 0))
        places.push_back({Gpa{msr.data & ~known.flags}, known.bytes});
  return places;
}

} // namespace stopvisor::vmm
