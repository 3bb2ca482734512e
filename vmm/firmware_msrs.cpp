// SPDX-License-Identifier: Apache-2.0
#include "vmm/firmware_msrs.h"

#include <sys/ioctl.h>

#include <algorithm>

#include "vmm/guest_memory.h"
#include "vmm/kvm_list.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kFastStrings = 1;
constexpr uint64_t kMtrrEnable = 1 << 11;
constexpr uint64_t kMtrrValid = 1 << 11;
constexpr uint64_t kWriteBack = 6;
constexpr uint64_t kUncached = 0;
constexpr unsigned kMinAddressBits = 36, kMaxAddressBits = 52;
static_assert(((kHoleEnd - kHoleStart) & (kHoleEnd - kHoleStart - 1)) == 0, "one MTRR covers the hole");

bool set_msr(int fd, MsrValue msr) {
  KvmMsrs one(1);
  one.head()->count = 1;
  one.entries()[0].index = msr.index;
  one.entries()[0].data = msr.value;
  return ::ioctl(fd, kKvmSetMsrs, one.head()) == 1;
}

} // namespace

std::array<MsrValue, 3> firmware_mtrrs(unsigned address_bits) noexcept {
  const unsigned bits = std::clamp(address_bits, kMinAddressBits, kMaxAddressBits);
  const uint64_t mask = ((1ULL << bits) - 1) & ~(kHoleEnd - kHoleStart - 1);
  return {{{kMsrMtrrBase0, kHoleStart | kUncached},
           {kMsrMtrrMask0, mask | kMtrrValid},
           {kMsrMtrrDefaultType, kMtrrEnable | kWriteBack}}};
}

void set_firmware_msrs(int vcpu_fd, unsigned address_bits) {
  for (const MsrValue& msr : firmware_mtrrs(address_bits))
    (void)set_msr(vcpu_fd, msr);
  KvmMsrs one(1);
  one.head()->count = 1;
  one.entries()[0].index = kMsrMiscEnable;
  if (::ioctl(vcpu_fd, kKvmGetMsrs, one.head()) == 1)
    (void)set_msr(vcpu_fd, {kMsrMiscEnable, one.entries()[0].data | kFastStrings});
}

} // namespace stopvisor::vmm
