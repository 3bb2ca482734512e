// SPDX-License-Identifier: Apache-2.0
// Symbols from a file beside the guest: System.map, or a vmlinux with its symbol table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <vector>

#include "vmm/error.h"
#include "vmm/linux/kernel_identity.h"
#include "vmm/linux/kernel_image.h"
#include "vmm/linux/symbol_table.h"

namespace stopvisor::vmm {

struct SymbolFile {
  std::string path;
  SymbolTable symbols;             // at the addresses the kernel was linked to
  std::vector<std::byte> build_id; // empty for a System.map, which has none
};

// Reads the file, a regular one of at most 2 GiB of which only the tables are taken in: a vmlinux by its ELF magic,
// else a System.map, of which every line must be "ADDRESS TYPE NAME". CONTEXT: any thread, blocks. RETURNS: kFailed
// where the host refuses, kUsage where the file is neither, naming what is wrong and where.
[[nodiscard]] std::expected<SymbolFile, Error> read_symbol_file(std::string_view operation,
                                                                const std::string& path);

// A file's symbols where the guest has them.
struct SymbolFit {
  uint64_t slide = 0;
  SymbolTable symbols;
  KernelIdentity identity;
};

// Finds the slide at which linux_banner and, where the file has one, the build ID are the image's; where the guest
// carries symbols itself (`own`, may be null), those of both must agree. CONTEXT: any thread, does not block.
// RETURNS: why the file is of another build, in words.
[[nodiscard]] std::expected<SymbolFit, std::string> fit_to_image(const SymbolFile& file, const KernelImage& image,
                                                                 const SymbolTable* own);

} // namespace stopvisor::vmm
