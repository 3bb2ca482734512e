// SPDX-License-Identifier: Apache-2.0
// What a user is told when a guest's life ends badly: vCPU, reason, registers, and the bytes at RIP.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <expected>
#include <string>

#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/registers.h"

namespace stopvisor::vmm {

// "KVM_EXIT_IO"; "KVM_EXIT_<number>" for a reason newer than this file. (linux/kvm.h)
[[nodiscard]] std::string exit_name(uint32_t reason);

// Why an exit is fatal, in one line: name, and suberror, hardware reason or event as KVM gave them.
[[nodiscard]] std::string describe_exit(const kvm_run& run);

// The message of a VmEnd, several lines: "vCPU 0: <reason>", registers, the bytes at RIP as the guest's own page
// tables give them. CONTEXT: the vCPU's own thread, does not block.
[[nodiscard]] std::string fatal_report(uint32_t cpu, const std::string& reason,
                                       const std::expected<Registers, Error>& registers, const GuestMemory& memory);

} // namespace stopvisor::vmm
