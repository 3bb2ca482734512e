// SPDX-License-Identifier: Apache-2.0
// Which vCPUs are at work: the CPU device's wishes, and how a vCPU comes and goes.
//
// The boot processor reads the device's registers and calls or dismisses the others; each comes up and leaves by
// itself. Where there is no CPU device, all that answer come once and nobody leaves.
//
//   absent ---- called by INIT and SIPI ----> called ---- at CPL 3 ----> up ---- dismissed, leaves ----> going
//   going  ---- wanted again, called ----> called          (a dismissal can be taken back until it leaves)
#pragma once

#include "guest/cpu_block.h"

namespace stopvisor::probe {

// Looks for the CPU device; `timer` tells whether vCPUs wake up by themselves. CONTEXT: the boot processor, first.
// RETURNS whether it is there.
bool find_cpu_device(CpuBlock& boot, bool timer);

// Reads the registers. CONTEXT: the boot processor at start-up, after the device's interrupt was routed.
// RETURNS how many vCPUs are wanted, with this one; at least 1.
uint32_t count_wanted();

// Starts those that count_wanted() found. CONTEXT: the boot processor at start-up.
void start_wanted();

// Does what the registers say now: starts vCPUs, asks others to leave. CONTEXT: the boot processor.
void follow_cpu_device();

// RETURNS whether this vCPU, which has just started, was called; without a CPU device, whether it is one of the
// first `told` (0: any is). CONTEXT: the vCPU itself, before it touches its block.
bool may_work(uint32_t index, uint32_t told);

// The calling vCPU is at work from now on. CONTEXT: each vCPU, at CPL 3, before its first slice.
void come_up(CpuBlock& block);

// Leaves for ever where the calling vCPU was asked to; else returns. CONTEXT: each but the boot processor, between
// two slices, when its block's `wake` is set. Nobody waits for what it holds then: it holds nothing.
void leave_if_asked(CpuBlock& block);

// Tells on the serial port who came and who went since the last call; nothing with `quiet`. CONTEXT: the boot
// processor, when its block's `wake` is set.
void tell_changes(CpuBlock& block, bool quiet);

// A vCPU's number among those at work, for shares of common work: below cpus_present but for moments.
uint32_t rank_of(uint32_t index);

// RETURNS whether every vCPU that is to work has phase kPoweredOff.
bool everybody_finished();

} // namespace stopvisor::probe
