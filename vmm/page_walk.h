// SPDX-License-Identifier: Apache-2.0
// Translates a guest virtual address by the vCPU's own page tables, as the CPU would.
//
// The tables are the guest's, and the guest is hostile: each entry is copied once, and a table outside
// memory is an error like any other. Rights are reported, not enforced: the host reads what a debugger
// would, whatever the vCPU's CPL.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <string_view>

#include "vmm/address.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/registers.h"

namespace stopvisor::vmm {

struct Translation {
  Gpa gpa;                 // of the byte asked for; it need not be RAM
  uint64_t page_bytes = 0; // 4 KiB, 2 MiB, 4 MiB or 1 GiB; 4 GiB where paging is off
  bool writable = false;   // by the tables at every level; CR0.WP, PKE, SMAP and CET are not looked at
  bool user = false;       // CPL 3 may use it
  bool executable = false;
};

// Walks 5-level, 4-level, PAE and 32-bit tables (Intel SDM volume 3, 4.3 to 4.5; AMD APM volume 2, 5.2 to
// 5.3), or none where CR0.PG is clear. Levels are counted from 1 (4 KiB pages) up to 5. Bits 51:0 are taken
// for the CPU's physical address width: an entry beyond the real width leads outside memory.
// CONTEXT: any thread, does not block; registers and tables belong together under a stop only.
// RETURNS: kFailed, the object being "gva:0x...", where the address is not canonical or beyond 32 bits, an
// entry is not present, has reserved bits set, or lies outside memory; each names level, place and entry.
[[nodiscard]] std::expected<Translation, Error> translate(std::string_view operation, Gva gva,
                                                          const Registers& registers, const GuestMemory& memory);

// What the tables say of the block that `gva` lies in: a page, or a hole of which no byte is mapped.
struct Block {
  std::optional<Translation> page;
  uint64_t bytes = 0; // of the whole block, a power of two it is aligned to
};

// As translate(), for those who walk over a range and need no words for what is not there.
[[nodiscard]] Block block_at(Gva gva, const Registers& registers, const GuestMemory& memory);

} // namespace stopvisor::vmm
