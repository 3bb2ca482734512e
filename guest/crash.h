// SPDX-License-Identifier: Apache-2.0
// The guest gives up: what happened goes to Results::crash, then the power device hears of it.
#pragma once

#include "guest/cpu_block.h"

namespace stopvisor::probe {

struct Crash {
  uint32_t vector;
  uint64_t error_code;
  uint64_t rip;
  uint64_t cr2;
};

// CONTEXT: any vCPU, CPL 0 or 3; two that crash at once leave either's record.
[[noreturn]] void crash(const CpuBlock& block, const Crash& what);

} // namespace stopvisor::probe
