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

// Touched only by its own vCPU, but for `wake`.
struct CpuBlock {
  CpuResults* results;
  uint32_t index;
  // Set to 1 by whoever has news, cleared by this vCPU before it looks what they are. It does not go to sleep while
  // one of them is set (idle() in traps.S).
  volatile uint8_t button;  // by the power button's handler, on the boot processor
  volatile uint8_t hotplug; // by the CPU device's handler, on the boot processor
  volatile uint8_t wake;    // by another vCPU, see coming_and_going.h
  uint8_t no_note;
  uint32_t boots;     // 1: the boot processor, which speaks for all
  uint32_t announced; // it has told that everybody runs
};
static_assert(offsetof(CpuBlock, results) == PROBE_BLOCK_RESULTS);
static_assert(offsetof(CpuBlock, button) == PROBE_BLOCK_BUTTON);
static_assert(offsetof(CpuBlock, hotplug) == PROBE_BLOCK_HOTPLUG);
static_assert(offsetof(CpuBlock, wake) == PROBE_BLOCK_WAKE);
static_assert(sizeof(CpuBlock) <= 0x40);

// The layout of layout.h against the ABI's.
static_assert(PROBE_MAX_CPUS == kMaxCpus);
static_assert(offsetof(CpuResults, timer_interrupts) == PROBE_RESULTS_TIMER_INTERRUPTS);
static_assert(PROBE_TASKS_GPA == kImageGpa);
static_assert(PROBE_CPU_BLOCKS_GPA >= kResultsGpa + sizeof(Results));
static_assert(PROBE_CPU_BLOCKS_GPA + PROBE_MAX_CPUS * PROBE_CPU_BLOCK_BYTES <= kLedgerGpa);
static_assert(1 << PROBE_CPU_BLOCK_SHIFT == PROBE_CPU_BLOCK_BYTES);
static_assert(PROBE_PORT_MAP_BYTES * 8 == kCpuPortBase + 4 * kMaxCpus);
static_assert(kCpuPortBase >= kDoorbellPortBase + 4 * kMaxCpus);
static_assert(PROBE_HIGH_TABLES_GPA >= kCodeGpa + 0x20'0000);
static_assert(PROBE_HIGH_TABLES_GPA + PROBE_HIGH_TABLES * 0x1000 <= kMinMemoryBytes);

inline Results& results() {
  return *reinterpret_cast<Results*>(kResultsGpa);
}

// The block of the vCPU with this index.
inline CpuBlock& block_of(uint32_t index) {
  return *reinterpret_cast<CpuBlock*>(PROBE_CPU_BLOCKS_GPA + uint64_t{index} * PROBE_CPU_BLOCK_BYTES);
}

inline CpuPhase phase_of(uint32_t index) {
  return static_cast<CpuPhase>(__atomic_load_n(&results().cpu[index].phase, __ATOMIC_SEQ_CST));
}

// Seen by all before anything the vCPU does next: who finishes looks at the others' phases after it set its own.
inline void set_phase(CpuResults& own, CpuPhase phase) {
  __atomic_store_n(&own.phase, static_cast<uint32_t>(phase), __ATOMIC_SEQ_CST);
}

} // namespace stopvisor::probe
