// SPDX-License-Identifier: Apache-2.0
#include "vmm/vcpu_wake.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <cerrno>

#include "vmm/kick_signal.h"
#include "vmm/kvm_list.h"

namespace stopvisor::vmm {
namespace {

// What KVM may have to tell before it has taken all requests: a triple fault, say. Each is told once.
constexpr int kMostExits = 16;

Error call_failed(const char* name, int error) {
  return system_error("wake vCPU", name, error);
}

// With a signal pending KVM_RUN comes as far as the guest's door: it takes all requests on the way, and looks for
// signals last. It says so by KVM_EXIT_INTR; where it finds immediate_exit set it does not even begin, and says
// nothing. The vCPU's own thread may be kicked meanwhile, and its handler set that: once for each kick.
std::expected<void, Error> run_to_the_door(const KvmVcpu& vcpu) {
  for (int exits = 0; exits < kMostExits;) {
    vcpu.run().exit_reason = KVM_EXIT_UNKNOWN;
    vcpu.set_immediate_exit(false);
    const int error = vcpu.enter();
    if (error != 0 && error != EINTR)
      return std::unexpected(call_failed("KVM_RUN", error));
    if (error == EINTR && vcpu.run().exit_reason == KVM_EXIT_INTR)
      return {};
    exits += error == 0 ? 1 : 0;
  }
  return std::unexpected(Error{"wake vCPU", "KVM_RUN", "it does not end at a signal"});
}

// RETURNS: 0 or an errno value.
int set_activity(const KvmVcpu& vcpu, uint32_t activity) {
  kvm_mp_state state{};
  state.mp_state = activity;
  return ::ioctl(vcpu.fd(), KVM_SET_MP_STATE, &state) == 0 ? 0 : errno;
}

// A vCPU is either halted or has the request to be: it takes that, and then a SIPI ends the halt, as it ends any
// that KVM knows. CONTEXT: a signal is pending.
std::expected<void, Error> take_halt_and_end_it(const KvmVcpu& vcpu) {
  if (const int refused = set_activity(vcpu, KVM_MP_STATE_RUNNABLE)) // one that waits for SIPI takes no requests
    return std::unexpected(call_failed("KVM_SET_MP_STATE", refused));
  if (auto done = run_to_the_door(vcpu); !done)
    return done;
  const int refused = set_activity(vcpu, KVM_MP_STATE_SIPI_RECEIVED);
  if (refused == EINVAL) // SIPI is kept from one that is a hypervisor itself (VMXON): a halt it has it keeps
    return {};
  if (refused != 0)
    return std::unexpected(call_failed("KVM_SET_MP_STATE", refused));
  return run_to_the_door(vcpu);
}

std::expected<void, Error> set_signal_mask(const KvmVcpu& vcpu, const KickAtTheDoor::Mask* mask) {
  if (::ioctl(vcpu.fd(), kKvmSetSignalMask, mask) != 0)
    return std::unexpected(call_failed("KVM_SET_SIGNAL_MASK", errno));
  return {};
}

// SIPI does not come through to a processor in SMM.
std::expected<void, Error> leave_smm(const KvmVcpu& vcpu) {
  kvm_vcpu_events events{};
  events.flags = KVM_VCPUEVENT_VALID_SMM;
  if (::ioctl(vcpu.fd(), KVM_SET_VCPU_EVENTS, &events) != 0)
    return std::unexpected(call_failed("KVM_SET_VCPU_EVENTS", errno));
  return {};
}

} // namespace

std::expected<void, Error> wake_vcpu(const KvmVcpu& vcpu) {
  if (auto done = leave_smm(vcpu); !done)
    return done;
  const KickAtTheDoor kick;
  if (kick.error() != 0)
    return std::unexpected(call_failed("tgkill", kick.error()));
  const auto mask = KickAtTheDoor::others();
  if (auto done = set_signal_mask(vcpu, &mask); !done)
    return done;
  auto done = take_halt_and_end_it(vcpu);
  auto undone = set_signal_mask(vcpu, nullptr);
  return done ? undone : done;
}

} // namespace stopvisor::vmm
