// SPDX-License-Identifier: Apache-2.0
#include "vmm/kvm_vcpu_state.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "vmm/kvm_list.h"
#include "vmm/state/vcpu_access.h"
#include "vmm/state/vcpu_msrs.h"
#include "vmm/tsc.h"
#include "vmm/vcpu_wake.h"

namespace stopvisor::vmm {
namespace {

Error ioctl_failed(const char* name) {
  return system_error("vCPU state", name, errno);
}

} // namespace

std::expected<VcpuState, Error> VcpuState::save(const KvmVcpu& vcpu, const KvmSystem& system) {
  VcpuState state;
  auto msrs = state_msrs_of(vcpu.fd(), system);
  if (!msrs)
    return std::unexpected(msrs.error());
  state.msrs_ = std::move(*msrs);
  auto values = read_vcpu(vcpu, system, state.msrs_);
  if (!values)
    return std::unexpected(values.error());
  state.values_ = std::move(*values);
  // With these a reset would move the clock.
  std::erase_if(state.values_.msrs, [](const kvm_msr_entry& msr) { return msr.index == kMsrTscAdjust; });
  return state;
}

// A read-only MSR, or one that KVM gives but does not take back, keeps its value: one it cannot have changed.
std::expected<void, Error> VcpuState::restore_msrs(int fd) const {
  KvmMsrs list(values_.msrs.size());
  size_t done = 0;
  while (done < values_.msrs.size()) {
    const size_t left = values_.msrs.size() - done;
    std::copy(values_.msrs.begin() + static_cast<ptrdiff_t>(done), values_.msrs.end(), list.entries().begin());
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
  if (auto done = wake_vcpu(vcpu); !done)
    return done;
  vcpu.forget_noted();
  // KVM takes INIT and SIPI that are on their way when it is asked for the state (kvm_apic_accept_events()); left
  // there, they would start a vCPU that is to wait for those of the guest to come.
  kvm_mp_state now{};
  if (::ioctl(fd, KVM_GET_MP_STATE, &now) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_MP_STATE"));
  if (::ioctl(fd, KVM_SET_SREGS, &values_.sregs) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_SREGS"));
  if (::ioctl(fd, KVM_SET_REGS, &values_.regs) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_REGS"));
  if (::ioctl(fd, kKvmSetXsave, values_.xsave.data()) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_XSAVE"));
  if (::ioctl(fd, KVM_SET_XCRS, &values_.xcrs) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_XCRS"));
  if (::ioctl(fd, KVM_SET_DEBUGREGS, &values_.debugregs) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_DEBUGREGS"));
  if (::ioctl(fd, KVM_SET_LAPIC, &values_.lapic) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_LAPIC"));
  if (auto restored = restore_msrs(fd); !restored)
    return restored;
  kvm_vcpu_events events = values_.events;
  events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW;
  if (::ioctl(fd, KVM_SET_VCPU_EVENTS, &events) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_VCPU_EVENTS"));
  if (::ioctl(fd, KVM_SET_MP_STATE, &values_.mp_state) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_MP_STATE"));
  return {};
}

} // namespace stopvisor::vmm
