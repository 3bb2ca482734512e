// SPDX-License-Identifier: Apache-2.0
// What a vCPU was doing when a stop caught it, in the words of the API.
#pragma once

#include "vmm/registers.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

// "offline" (out of the machine), "waiting" (for INIT or SIPI), "halted" (in HLT), "guest" (it ran guest code when
// it was kicked), or "host" (the VMM served an exit of it, or it has not been in the guest yet).
[[nodiscard]] const char* vcpu_activity(const VcpuStatus& status, const Registers& registers);

} // namespace stopvisor::vmm
