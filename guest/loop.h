// SPDX-License-Identifier: Apache-2.0
// The loop every vCPU ends up in: slices of the chosen scenarios, for ever or for a given number.
#pragma once

#include "guest/command_line.h"
#include "guest/cpu_block.h"
#include "guest/start_info.h"

namespace stopvisor::probe {

// Reports the vCPU as running, then runs slices. CONTEXT: each vCPU, at CPL 3, set up completely.
[[noreturn]] void run_slices(CpuBlock& block, const Options& options, const Memory& memory);

} // namespace stopvisor::probe
