// SPDX-License-Identifier: Apache-2.0
// Addresses that users write by a symbol's name, in a guest's Linux kernel.
#pragma once

#include <cstdint>
#include <expected>

#include "vmm/error.h"
#include "vmm/guest_address.h"
#include "vmm/guest_memory.h"
#include "vmm/linux/linux_kernel.h"

namespace stopvisor::vmm {

// The kernel's virtual address of a kSymbol. Of a per-CPU variable, that of the CPU named with @ (the kernel's
// number). CONTEXT: under a stop, does not block. RETURNS: kRefused where there is no such symbol, several of that
// name (the error tells where), or no such CPU.
[[nodiscard]] std::expected<uint64_t, Error> symbol_address(const char* operation, const GuestAddress& address,
                                                            const LinuxKernel& kernel, const GuestMemory& memory);

} // namespace stopvisor::vmm
