// SPDX-License-Identifier: Apache-2.0
// The few bytes of firmware that there are: what a kernel finds where a BIOS is entered.
//
// A kernel that wants to restart the machine and knows no better way goes to real mode and jumps to F000:FFF0.
// Linux 6.1 takes no other way on hardware-reduced ACPI: it relies on EFI there, whether it was started by EFI or
// not, and on the BIOS where there is none (arch/x86/kernel/reboot.c). Ours resets the machine.
#pragma once

#include <expected>

#include "vmm/error.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm {

inline constexpr uint64_t kResetVectorGpa = 0xf'fff0;

// Writes them. CONTEXT: before any vCPU runs, or under a stop. RETURNS: kFailed where memory ends before.
[[nodiscard]] std::expected<void, Error> write_reset_vector(GuestMemory& memory);

} // namespace stopvisor::vmm
