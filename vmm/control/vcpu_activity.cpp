// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/vcpu_activity.h"

#include <linux/kvm.h>

#include "vmm/exit_report.h"

namespace stopvisor::vmm {

const char* vcpu_activity(const VcpuStatus& status, const Registers& registers) {
  if (status.presence == VcpuPresence::kOffline)
    return "offline";
  if (registers.waiting)
    return "waiting";
  if (registers.halted)
    return "halted";
  return status.last_exit == exit_name(KVM_EXIT_INTR) ? "guest" : "host";
}

} // namespace stopvisor::vmm
