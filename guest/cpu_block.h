// SPDX-License-Identifier: Apache-2.0
// One vCPU's private block: what its handlers need, and its two stacks.
//
// It lies at a fixed place for each vCPU index, so that assembly finds it from the APIC ID at start-up and
// from the stack pointer ever after.
#pragma once

#include "guest/layout.h"
#include "guest/probe_abi.h"

#include <stddef.h>
#include <stdint.h>

namespace stopvisor::probe {

// Touched only by its own vCPU.
struct CpuBlock {
  CpuResults* results;
  uint32_t index;
  volatile uint32_t button; // set by the power button's handler, on the boot processor
  uint32_t boots;           // 1: the boot processor, which speaks for all
  uint32_t announced;       // it has told that everybody runs
};
static_assert(offsetof(CpuBlock, results) == PROBE_BLOCK_RESULTS);
static_assert(offsetof(CpuBlock, button) == PROBE_BLOCK_BUTTON);
static_assert(sizeof(CpuBlock) <= 0x40);

// The layout of layout.h against the ABI's.
static_assert(PROBE_MAX_CPUS == kMaxCpus);
static_assert(offsetof(CpuResults, timer_interrupts) == PROBE_RESULTS_TIMER_INTERRUPTS);
static_assert(PROBE_TASKS_GPA == kImageGpa);
static_assert(PROBE_CPU_BLOCKS_GPA >= kResultsGpa + sizeof(Results));
static_assert(PROBE_CPU_BLOCKS_GPA + PROBE_MAX_CPUS * PROBE_CPU_BLOCK_BYTES <= kLedgerGpa);
static_assert(1 << PROBE_CPU_BLOCK_SHIFT == PROBE_CPU_BLOCK_BYTES);
static_assert(PROBE_PORT_MAP_BYTES * 8 == kDoorbellPortBase + 4 * kMaxCpus);
static_assert(PROBE_HIGH_TABLES_GPA >= kCodeGpa + 0x20'0000);
static_assert(PROBE_HIGH_TABLES_GPA + PROBE_HIGH_TABLES * 0x1000 <= kMinMemoryBytes);

inline Results& results() {
  return *reinterpret_cast<Results*>(kResultsGpa);
}

} // namespace stopvisor::probe
