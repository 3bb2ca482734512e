// SPDX-License-Identifier: Apache-2.0
// A strict reader of x86 ELF kernels: which bytes go where, and where a PVH kernel is entered.
//
// The file is hostile. The reader is a pure function of its bytes: every offset and size is checked before
// it is used, nothing is kept but numbers that were checked, and each refusal has its own words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>
#include <vector>

#include "vmm/error.h"

namespace stopvisor::vmm {

// One PT_LOAD program header with memory behind it. file_offset + file_bytes lies inside the file,
// file_bytes <= memory_bytes, and gpa + memory_bytes does not overflow.
struct ElfSegment {
  uint32_t index = 0; // of its program header, for messages
  uint64_t file_offset = 0;
  uint64_t file_bytes = 0;
  uint64_t gpa = 0; // p_paddr
  uint64_t memory_bytes = 0;
};

struct ElfKernel {
  std::vector<ElfSegment> segments; // sorted by gpa, no two overlap, at least one
  uint64_t pvh_entry = 0;           // a 32-bit address inside the file's bytes of one segment
};

// Reads a PVH kernel: ELF64 for x86-64 or ELF32 for i386, little endian, ET_EXEC or ET_DYN, with a note
// XEN_ELFNOTE_PHYS32_ENTRY (name "Xen", type 18, a 4 or 8 byte address; xen/include/public/elfnote.h).
// `name` is the file's, for the error "load kernel: NAME: reason". CONTEXT: any thread, does not block.
// RETURNS: kFailed where the file is no ELF, is truncated, is for another architecture, has no or a
// malformed PVH note, has overlapping or overflowing segments, or is entered outside its segments.
[[nodiscard]] std::expected<ElfKernel, Error> read_elf(std::span<const std::byte> file, std::string_view name);

} // namespace stopvisor::vmm
