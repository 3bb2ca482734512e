// SPDX-License-Identifier: Apache-2.0
// Finds the symbol table that a Linux kernel carries for itself (CONFIG_KALLSYMS) by its structure alone.
//
// The tables are made by Linux' scripts/kallsyms.c. Nothing points at them from outside, but they are knit
// together: tokens and their index; names made of tokens and markers that say where each 256th begins; as many
// offsets as names. Only tables that agree in all of that are taken.
#pragma once

#include <expected>
#include <string>

#include "stopper/function_ref.h"
#include "vmm/linux/kernel_image.h"
#include "vmm/linux/symbol_table.h"

namespace stopvisor::vmm {

// The first table in `image` that `accept` takes: a guest may hold several that look alike. Takes the order of
// Linux 6.1 to 6.3 (offsets first) and of 6.4 on (offsets last), with base-relative offsets. CONTEXT: any thread,
// does not block; the work is bounded, whatever the image holds. RETURNS: the table, sorted; which part of the
// structure was not found, or what `accept` said of the last.
[[nodiscard]] std::expected<SymbolTable, std::string>
find_kallsyms(const KernelImage& image,
              stopper::FunctionRef<std::expected<void, std::string>(const SymbolTable&)> accept);

} // namespace stopvisor::vmm
