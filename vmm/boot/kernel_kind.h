// SPDX-License-Identifier: Apache-2.0
// Tells by its content, not its name, what a kernel file is.
#pragma once

#include <cstddef>
#include <expected>
#include <span>
#include <string_view>

#include "vmm/error.h"

namespace stopvisor::vmm {

enum class KernelKind {
  kElf,     // elf.h reads it
  kBzImage, // bzimage.h reads it
};

// Looks at the magic numbers alone: the reader of that kind checks the rest. `name` is for the error.
// CONTEXT: any thread, does not block. RETURNS: kFailed, saying what the file is instead where that is known:
// a kernel for another architecture, a compressed file.
[[nodiscard]] std::expected<KernelKind, Error> kernel_kind(std::span<const std::byte> file, std::string_view name);

} // namespace stopvisor::vmm
