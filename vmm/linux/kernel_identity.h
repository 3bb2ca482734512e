// SPDX-License-Identifier: Apache-2.0
// Which kernel it is: the version it prints and the build ID it was linked with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <vector>

#include "vmm/linux/kernel_image.h"
#include "vmm/linux/kernel_memory.h"
#include "vmm/linux/symbol_table.h"

namespace stopvisor::vmm {

struct KernelIdentity {
  // Bytes that are the same for as long as this kernel runs, and where they lie.
  struct Proof {
    uint64_t gva = 0;
    std::vector<std::byte> bytes;
  };

  std::string banner;              // "Linux version 6.1.0-...", one line
  std::string release;             // "6.1.0-..."
  std::vector<std::byte> build_id; // empty where it has none
  std::vector<Proof> proofs;       // the banner, and the notes where it has any

  // Whether the kernel whose memory this is still has it. CONTEXT: any thread, does not block.
  [[nodiscard]] bool holds_in(const KernelMemory& memory) const;
};

// The words that `linux_banner` begins with in every Linux (init/version.c).
inline constexpr std::string_view kBannerStart = "Linux version ";

// Reads the banner and the build ID where `symbols` say they lie. CONTEXT: any thread, does not block.
// RETURNS: why the symbols cannot be this image's, in words.
[[nodiscard]] std::expected<KernelIdentity, std::string> identify(const KernelImage& image,
                                                                  const SymbolTable& symbols);

// The build ID in `notes` (ELF: a note of name "GNU" and type NT_GNU_BUILD_ID); empty where there is none, or
// the notes are malformed.
[[nodiscard]] std::span<const std::byte> build_id_in(std::span<const std::byte> notes);

} // namespace stopvisor::vmm
