// SPDX-License-Identifier: Apache-2.0
// The scenarios: each is one function that runs a bounded slice of it on the calling vCPU.
//
// CONTEXT of all: CPL 3, the vCPU that owns `cpu`; nothing is locked and nothing waits for another vCPU.
// A slice takes tens to hundreds of microseconds where the CPU runs it natively.
#pragma once

#include "guest/cpu_block.h"
#include "guest/start_info.h"

namespace stopvisor::probe {

// What a vCPU keeps from slice to slice besides its results.
struct SliceState {
  CpuResults* results;
  uint32_t index;
  Memory memory;
  uint64_t gap_last_tsc = 0;    // 0: no read to compare with
  uint64_t dirty_next_page = 0; // within this vCPU's share
  uint64_t dirty_pass = 0;
  uint64_t dirty_last_tsc = 0;
  uint64_t dirty_credit = 0;              // TSC ticks not yet spent on pages
  uint64_t mail_last[kMailboxWords] = {}; // the mailbox's words when they were last read
};

void gap_slice(SliceState& state);
void ledger_slice(SliceState& state);
void code_slice(SliceState& state);
void dirty_slice(SliceState& state);
void io_slice(SliceState& state);
void idle_slice(SliceState& state);

// Empties the mailbox of a vCPU that has not rung yet; one that comes back goes on where it was.
// CONTEXT: each vCPU, before its first slice.
void prepare_mailbox(SliceState& state);

// Writes the code sites with the value 0. CONTEXT: vCPU 0 before any slice.
void write_code_sites();

// Bytes the dirty scenario may rewrite in this memory.
uint64_t dirty_capacity(const Memory& memory);

} // namespace stopvisor::probe
