// SPDX-License-Identifier: Apache-2.0
// What a Linux kernel's symbols and tables say of its code: where a function ends, and which code it changes
// itself.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "vmm/guest_memory.h"
#include "vmm/linux/linux_kernel.h"

namespace stopvisor::patch {

struct Extent {
  uint64_t begin = 0, end = 0;
};

// From the nearest symbol of code at or before `address` to the next symbol. Nothing where there is none.
[[nodiscard]] std::optional<Extent> function_around(const vmm::SymbolTable& symbols, uint64_t address);

struct SelfChanging {
  uint64_t address = 0;
  const char* kind = ""; // "a jump label", "a static call"
};

// Sorted by address; as far as the symbols tell. CONTEXT: any thread; the tables are constant once the kernel is
// up.
[[nodiscard]] std::vector<SelfChanging> self_changing_code(const vmm::LinuxKernel& kernel,
                                                           const vmm::GuestMemory& memory);

} // namespace stopvisor::patch
