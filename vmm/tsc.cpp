// SPDX-License-Identifier: Apache-2.0
#include "vmm/tsc.h"

#include <sys/ioctl.h>

#include <cerrno>

#include "vmm/kvm_list.h"

namespace stopvisor::vmm {
namespace {

// linux/kvm.h has these since 5.16.
constexpr uint32_t kTscControl = 0; // KVM_VCPU_TSC_CTRL
constexpr uint64_t kTscOffset = 0;  // KVM_VCPU_TSC_OFFSET

kvm_device_attr offset_attribute(uint64_t& value) {
  kvm_device_attr attribute{};
  attribute.group = kTscControl;
  attribute.attr = kTscOffset;
  attribute.addr = reinterpret_cast<uintptr_t>(&value);
  return attribute;
}

} // namespace

std::optional<uint64_t> KvmTscAccess::offset() const {
  uint64_t value = 0;
  kvm_device_attr attribute = offset_attribute(value);
  if (::ioctl(vcpu_.fd(), KVM_GET_DEVICE_ATTR, &attribute) != 0)
    return std::nullopt;
  return value;
}

bool KvmTscAccess::set_offset(uint64_t offset) {
  kvm_device_attr attribute = offset_attribute(offset);
  return ::ioctl(vcpu_.fd(), KVM_SET_DEVICE_ATTR, &attribute) == 0;
}

std::expected<uint64_t, Error> KvmTscAccess::msr(uint32_t index) const {
  KvmMsrs one(1);
  one.head()->count = 1;
  one.entries()[0].index = index;
  if (::ioctl(vcpu_.fd(), kKvmGetMsrs, one.head()) != 1)
    return std::unexpected(system_error("vCPU clock", "KVM_GET_MSRS", errno));
  return one.entries()[0].data;
}

std::expected<void, Error> KvmTscAccess::set_msr(uint32_t index, uint64_t value) {
  KvmMsrs one(1);
  one.head()->count = 1;
  one.entries()[0].index = index;
  one.entries()[0].data = value;
  if (::ioctl(vcpu_.fd(), kKvmSetMsrs, one.head()) != 1)
    return std::unexpected(system_error("vCPU clock", "KVM_SET_MSRS", errno));
  return {};
}

std::expected<void, Error> align_tsc(const TscAccess& reference, TscAccess& newcomer) {
  // First, as some KVMs move the TSC with it. Where it cannot be read, guests are not told of it either.
  if (const auto adjust = reference.msr(kMsrTscAdjust))
    if (auto done = newcomer.set_msr(kMsrTscAdjust, *adjust); !done)
      return done;
  if (const auto offset = reference.offset(); offset && newcomer.set_offset(*offset))
    return {};
  const auto now = reference.msr(kMsrTsc);
  if (!now)
    return std::unexpected(now.error());
  return newcomer.set_msr(kMsrTsc, *now);
}

} // namespace stopvisor::vmm
