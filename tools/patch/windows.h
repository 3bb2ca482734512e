// SPDX-License-Identifier: Apache-2.0
// Finds the window of each write to code, and what else in its function, or in the kernel's tables, leads into it.
#pragma once

#include "tools/patch/preparation.h"

namespace stopvisor::patch {

// Fills window and function of each site that is to be applied to code, and adds what speaks against it. Where the
// function around a write is not known (no symbol, none given) its first byte is taken for an instruction's first.
// CONTEXT: any thread; reads the guest's memory while it may run.
void find_windows(Preparation& prepared, Spaces& spaces, const vmm::GuestMemory& memory);

} // namespace stopvisor::patch
