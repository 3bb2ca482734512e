// SPDX-License-Identifier: Apache-2.0
// A strict reader of Linux's bzImage files: what is loaded where, and what the kernel asks of its loader.
//
// The file is hostile. The reader is a pure function of its bytes, as elf.h's. The kernel decompresses itself, so
// that the compression does not matter here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>

#include "vmm/error.h"

namespace stopvisor::vmm {

struct BzImage {
  std::span<const std::byte> setup_header; // from kSetupHeaderOffset on, fits into the zero page
  std::span<const std::byte> code;         // what is loaded; reaches beyond the 64-bit entry
  bool relocatable = false;
  uint64_t preferred_gpa = 0; // at least 1 MiB
  uint64_t alignment = 0;     // of its load address, a power of two
  uint64_t memory_bytes = 0; // it uses as much from its load address on; preferred_gpa + memory_bytes is below 2^63
  uint64_t max_cmdline_bytes = 0;
  uint64_t highest_initrd_byte = 0;
};

// Reads a bzImage that has a 64-bit entry. `name` is the file's, for the error "load kernel: NAME: reason".
// CONTEXT: any thread, does not block. The result points into `file`.
// RETURNS: kFailed where the file is no bzImage, is truncated, has no 64-bit entry (boot protocol before 2.12, or a
// 32-bit kernel), or contradicts itself.
[[nodiscard]] std::expected<BzImage, Error> read_bzimage(std::span<const std::byte> file, std::string_view name);

} // namespace stopvisor::vmm
