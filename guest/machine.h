// SPDX-License-Identifier: Apache-2.0
// What CPUID tells of the machine, and the page tables beyond the image's static ones.
#pragma once

#include "guest/start_info.h"

namespace stopvisor::probe {

// RETURNS the number of logical processors by CPUID leaf 0xB or 1: 1 to kMaxCpus. A hint: some VMMs
// leave these leaves as the host's.
uint32_t cpus_told();

// RETURNS the TSC frequency by the hypervisor's timing leaf or leaf 0x15; 0 where neither tells.
uint64_t tsc_hz_told();

// Identity-maps RAM above 4 GiB, as far as the tables reach: 512 GiB with 1 GiB pages, 64 GiB without;
// cuts `memory` to what is mapped. CONTEXT: vCPU 0, before the others start.
void map_high_memory(Memory& memory);

} // namespace stopvisor::probe
