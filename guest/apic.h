// SPDX-License-Identifier: Apache-2.0
// The local APIC of the calling vCPU (x2APIC where CPUID has it) and the I/O APIC.
#pragma once

#include <stdint.h>

namespace stopvisor::probe {

// Software-enables the calling vCPU's local APIC, masks LINT0 and starts its periodic timer at `hz`
// (0: none). Counts on the timer's clock of 1 GHz that KVM and QEMU give it. CONTEXT: each vCPU once.
void start_local_apic(uint32_t hz);

// Stops the calling vCPU's timer. An interrupt it raised before may still come. CONTEXT: any vCPU.
void stop_timer();

// Sends INIT and start-up to all other vCPUs at once. They begin at the trampoline. CONTEXT: vCPU 0.
void start_other_cpus();

// The same for the one with this APIC ID, wherever it was: its task state may be in use by nobody else, so it is
// made available again. CONTEXT: vCPU 0.
void start_cpu(uint32_t apic_id);

// Interrupts the vCPU with this APIC ID, so that it leaves HLT. CONTEXT: any vCPU.
void interrupt_cpu(uint32_t apic_id);

// Software-enables the local APIC, masks the 8259s, and routes the power button, and where there is a CPU device
// its interrupt, to the vCPU with this APIC ID. CONTEXT: vCPU 0.
void route_interrupts(uint32_t apic_id, bool cpu_device);

// Measures the TSC against the local APIC timer's clock for about 2 ms. CONTEXT: vCPU 0 before
// start_local_apic(). RETURNS ticks per second, 0 where the timer does not count.
uint64_t measure_tsc_hz();

} // namespace stopvisor::probe
