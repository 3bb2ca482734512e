// SPDX-License-Identifier: Apache-2.0
// The address space of a process of a Linux guest.
#pragma once

#include <cstdint>
#include <expected>
#include <string>

#include "vmm/guest_memory.h"
#include "vmm/linux/linux_kernel.h"

namespace stopvisor::vmm {

// Processes that are looked at: a list that does not end is a hostile guest's, and the guest may be held for it.
inline constexpr uint32_t kMostProcesses = 1 << 15;

// Where the top page table of process `pid` lies (guest physical), by the kernel's list of processes. `pid` as the
// guest's first PID namespace counts. CONTEXT: any thread, does not block; true under a stop only.
// RETURNS: why not, in words: no such process, a kernel thread, a kernel whose list cannot be read.
[[nodiscard]] std::expected<uint64_t, std::string> find_process_table(const LinuxKernel& kernel,
                                                                      const GuestMemory& memory, uint32_t pid);

} // namespace stopvisor::vmm
