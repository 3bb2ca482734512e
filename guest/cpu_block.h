// SPDX-License-Identifier: Apache-2.0
// One vCPU's private block: what its handlers need, its task state and its two stacks.
//
// It lies at a fixed place for each vCPU index, so that assembly finds it from the APIC ID at start-up and
// from the stack pointer ever after.
#pragma once

#include "guest/layout.h"
#include "guest/probe_abi.h"

#include <stddef.h>
#include <stdint.h>

namespace stopvisor::probe {

// The 64-bit task state segment; only rsp0 matters here. (Intel SDM vol. 3, 8.7)
struct [[gnu::packed]] TaskState {
  uint32_t reserved0;
  uint64_t rsp0;
  uint64_t unused[11];
  uint16_t reserved1;
  uint16_t io_map_base;
};
static_assert(sizeof(TaskState) == PROBE_TASK_BYTES);

// Touched only by its own vCPU.
struct CpuBlock {
  CpuResults* results;
  uint32_t index;
  volatile uint32_t button; // set by the power button's handler, on vCPU 0
  TaskState task;
  uint8_t port_map[PROBE_PORT_MAP_BYTES]; // zero: CPL 3 may use the port
  uint8_t port_map_end;
};
static_assert(offsetof(CpuBlock, results) == PROBE_BLOCK_RESULTS);
static_assert(offsetof(CpuBlock, button) == PROBE_BLOCK_BUTTON);
static_assert(offsetof(CpuBlock, task) == PROBE_BLOCK_TASK);
static_assert(offsetof(CpuBlock, port_map) == PROBE_BLOCK_PORT_MAP);
static_assert(sizeof(CpuBlock) <= 0x1000);

// The layout of layout.h against the ABI's.
static_assert(PROBE_MAX_CPUS == kMaxCpus);
static_assert(offsetof(CpuResults, timer_interrupts) == PROBE_RESULTS_TIMER_INTERRUPTS);
static_assert(PROBE_CPU_BLOCKS_GPA >= kCodeGpa + 0x20'0000);
static_assert(PROBE_CPU_BLOCKS_GPA + PROBE_MAX_CPUS * PROBE_CPU_BLOCK_BYTES <= PROBE_HIGH_TABLES_GPA);
static_assert(PROBE_HIGH_TABLES_GPA + PROBE_HIGH_TABLES * 0x1000 <= kMinMemoryBytes);

inline Results& results() { return *reinterpret_cast<Results*>(kResultsGpa); }

} // namespace stopvisor::probe
