// SPDX-License-Identifier: Apache-2.0
// The probe guest's private addresses and selectors, as macros that its assembly and its C++ both read.
//
// The public part of the layout is guest/probe_abi.h; cpu_block.h asserts that the two agree.
#pragma once

// Memory. The image starts at 1 MiB (probe.ld) with the task states; the vCPUs' blocks fill what the results
// page leaves of its 2 MiB, because a VMM on huge pages pays for each 2 MiB that a guest touches.
#define PROBE_TRAMPOLINE_GPA 0x8000   // where application processors start in real mode: SIPI vector 8
#define PROBE_TASKS_GPA 0x100000      // the vCPUs' task state segments
#define PROBE_CPU_BLOCKS_GPA 0x300000 // one block per vCPU: CpuBlock, then its two stacks
#define PROBE_CPU_BLOCK_BYTES 0x1000  // a power of two: a stack pointer leads to its block by masking
#define PROBE_CPU_BLOCK_SHIFT 12
#define PROBE_KERNEL_STACK_TOP 0x600 // in the block
#define PROBE_USER_STACK_TOP 0xff0   // in the block, below its end, so that masking always works
#define PROBE_MAX_CPUS 256
#define PROBE_HIGH_TABLES_GPA 0xc00000 // page directories for memory above 4 GiB, where the CPU lacks 1 GiB pages
#define PROBE_HIGH_TABLES 64           // of them: 64 GiB

// CpuBlock and CpuResults fields that assembly touches.
#define PROBE_BLOCK_RESULTS 0
#define PROBE_BLOCK_BUTTON 12 // these three: one byte each, looked at together
#define PROBE_BLOCK_HOTPLUG 13
#define PROBE_BLOCK_WAKE 14
#define PROBE_BLOCK_NOTES 12 // the 4 bytes of which they are three
#define PROBE_RESULTS_TIMER_INTERRUPTS 24

// Task states stand in a row, and behind the last is the port map all of them share: it lets CPL 3 use ports
// 0 to 0x63ff. IOPL 3 would be simpler, but some KVMs drop IOPL from RFLAGS.
#define PROBE_TASK_BYTES 104
#define PROBE_PORT_MAP_BYTES 0xc80 // and one more byte of all ones

// Selectors: the ones a Linux guest uses.
#define PROBE_KERNEL_CS 0x10
#define PROBE_KERNEL_DS 0x18
#define PROBE_USER_DS 0x2b
#define PROBE_USER_CS 0x33
#define PROBE_TSS_SELECTOR 0x40 // + 16 * vCPU
#define PROBE_GDT_BYTES (PROBE_TSS_SELECTOR + 16 * PROBE_MAX_CPUS)

// Control registers of every vCPU: PE|MP|ET|NE|PG, and PAE; EFER.LME.
#define PROBE_CR0 0x80000033
#define PROBE_CR4 0x20
#define PROBE_EFER 0x100
#define PROBE_USER_RFLAGS 2 // interrupts are switched on later, by a kernel call

// Interrupt vectors.
#define PROBE_VECTOR_TIMER 0x20
#define PROBE_VECTOR_BUTTON 0x29
#define PROBE_VECTOR_HOTPLUG 0x2a
#define PROBE_VECTOR_WAKE 0x2b // from another vCPU
#define PROBE_VECTOR_SPURIOUS 0xff
