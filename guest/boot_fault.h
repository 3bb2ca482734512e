// SPDX-License-Identifier: Apache-2.0
// Deliberate ends of the guest, for tests of what the VMM says then.
#pragma once

#include "guest/command_line.h"
#include "guest/cpu_block.h"

namespace stopvisor::probe {

// Returns where `fault` is kNone, and where the CPU survives it. CONTEXT: vCPU 0, gates set.
void commit_boot_fault(CpuBlock& block, BootFault fault);

} // namespace stopvisor::probe
