// SPDX-License-Identifier: Apache-2.0
// What of an ELF file is loaded, and its symbols: what two builds of one file are compared by.
//
// The files may be a stranger's. The reader is a pure function of their bytes: every offset and size is checked
// before it is used, and each refusal has its own words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/error.h"

namespace stopvisor::patch {

struct ElfSegment {
  uint64_t virtual_address = 0;
  uint64_t physical_address = 0;
  uint64_t memory_bytes = 0;
  uint32_t flags = 0;               // PF_X and the like
  std::span<const std::byte> bytes; // of the file
};

struct ElfFunction {
  uint64_t address = 0;
  uint64_t size = 0; // may be 0: not known
  std::string name;
  bool code = false;
  bool unique = false; // no other symbol has that name
};

struct ElfImage {
  uint16_t machine = 0;
  uint16_t type = 0;
  bool wide = true;                                 // ELF64
  std::vector<ElfSegment> segments;                 // those that are loaded, in the file's order
  std::vector<std::pair<uint64_t, uint64_t>> notes; // virtual addresses, first and one past the last
  std::vector<std::byte> build_id;                  // empty where there is none
  std::vector<ElfFunction> symbols;                 // by address; empty where the file is stripped

  // The nearest symbol at or before the address whose name is its own, within its size where that is known.
  [[nodiscard]] const ElfFunction* symbol_at(uint64_t address) const;
};

// `file` must outlive the result, `name` is the file's. CONTEXT: any thread, does not block.
// RETURNS: kFailed: no ELF for x86, cut short, sizes that overflow or do not fit.
[[nodiscard]] std::expected<ElfImage, vmm::Error> read_elf_image(std::span<const std::byte> file,
                                                                 std::string_view name);

} // namespace stopvisor::patch
