// SPDX-License-Identifier: Apache-2.0
#include "vmm/kvm_vcpu_state.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "vmm/kvm_list.h"
#include "vmm/tsc.h"

namespace stopvisor::vmm {
namespace {

constexpr size_t kXsaveBytes = sizeof(KvmXsave);

Error ioctl_failed(const char* name) {
  return system_error("vCPU state", name, errno);
}

} // namespace

std::expected<VcpuState, Error> VcpuState::save(const KvmVcpu& vcpu, const KvmSystem& system) {
  const int fd = vcpu.fd();
  VcpuState state;
  if (::ioctl(fd, KVM_GET_MP_STATE, &state.mp_state_) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_MP_STATE"));
  if (::ioctl(fd, KVM_GET_REGS, &state.regs_) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_REGS"));
  if (::ioctl(fd, KVM_GET_SREGS, &state.sregs_) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_SREGS"));
  const auto needed = static_cast<size_t>(system.capability(KVM_CAP_XSAVE2));
  state.xsave_.resize(std::max(needed, kXsaveBytes)); // KVM_SET_XSAVE reads as much, too
  if (::ioctl(fd, needed > kXsaveBytes ? kKvmGetXsave2 : kKvmGetXsave, state.xsave_.data()) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_XSAVE"));
  if (::ioctl(fd, KVM_GET_XCRS, &state.xcrs_) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_XCRS"));
  if (::ioctl(fd, KVM_GET_DEBUGREGS, &state.debugregs_) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_DEBUGREGS"));
  if (::ioctl(fd, KVM_GET_LAPIC, &state.lapic_) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_LAPIC"));
  if (::ioctl(fd, KVM_GET_VCPU_EVENTS, &state.events_) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_VCPU_EVENTS"));
  if (auto saved = state.save_msrs(fd, system); !saved)
    return std::unexpected(saved.error());
  return state;
}

// One by one: KVM lists MSRs that it then does not give on this CPU, and stops at the first of these.
std::expected<void, Error> VcpuState::save_msrs(int fd, const KvmSystem& system) {
  for (const uint32_t index : system.state_msrs()) {
    if (index == kMsrTsc || index == kMsrTscAdjust)
      continue;
    KvmMsrs one(1);
    one.head()->count = 1;
    one.entries()[0].index = index;
    const int got = ::ioctl(fd, kKvmGetMsrs, one.head());
    if (got < 0)
      return std::unexpected(ioctl_failed("KVM_GET_MSRS"));
    if (got == 1)
      msrs_.push_back(one.entries()[0]);
  }
  return {};
}

// A read-only MSR, or one that KVM gives but does not take back, keeps its value: one it cannot have changed.
std::expected<void, Error> VcpuState::restore_msrs(int fd) const {
  KvmMsrs list(msrs_.size());
  size_t done = 0;
  while (done < msrs_.size()) {
    const size_t left = msrs_.size() - done;
    std::copy(msrs_.begin() + static_cast<ptrdiff_t>(done), msrs_.end(), list.entries().begin());
    list.head()->count = static_cast<uint32_t>(left);
    const int set = ::ioctl(fd, kKvmSetMsrs, list.head()); // how many, up to the first that was refused
    if (set < 0)
      return std::unexpected(ioctl_failed("KVM_SET_MSRS"));
    done += std::min(static_cast<size_t>(set) + 1, left);
  }
  return {};
}

// The order is that of others who found out the hard way (docs/explanation): the local APIC after SREGS, whose APIC
// base it needs; MSRs after the local APIC, for the TSC deadline; events last, as SREGS touches them; MP_STATE
// after all that can wake a vCPU.
std::expected<void, Error> VcpuState::restore(const KvmVcpu& vcpu) const {
  const int fd = vcpu.fd();
  // KVM takes INIT and SIPI that are on their way when it is asked for the state (kvm_apic_accept_events()); left
  // there, they would start a vCPU that is to wait for those of the guest to come.
  kvm_mp_state now{};
  if (::ioctl(fd, KVM_GET_MP_STATE, &now) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_MP_STATE"));
  if (::ioctl(fd, KVM_SET_SREGS, &sregs_) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_SREGS"));
  if (::ioctl(fd, KVM_SET_REGS, &regs_) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_REGS"));
  if (::ioctl(fd, kKvmSetXsave, xsave_.data()) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_XSAVE"));
  if (::ioctl(fd, KVM_SET_XCRS, &xcrs_) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_XCRS"));
  if (::ioctl(fd, KVM_SET_DEBUGREGS, &debugregs_) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_DEBUGREGS"));
  if (::ioctl(fd, KVM_SET_LAPIC, &lapic_) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_LAPIC"));
  if (auto restored = restore_msrs(fd); !restored)
    return restored;
  kvm_vcpu_events events = events_;
  events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW;
  if (::ioctl(fd, KVM_SET_VCPU_EVENTS, &events) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_VCPU_EVENTS"));
  if (::ioctl(fd, KVM_SET_MP_STATE, &mp_state_) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_MP_STATE"));
  return {};
}

} // namespace stopvisor::vmm
