// SPDX-License-Identifier: Apache-2.0
// The structures a PVH kernel is handed, as they lie in guest memory.
//
// Source of the layout: xen/include/public/arch-x86/hvm/start_info.h, version 1. Written here anew; guests
// in this repository and their tests read the same structures.
#pragma once

#include <cstdint>

namespace stopvisor::vmm::pvh {

inline constexpr uint32_t kStartInfoMagic = 0x336e'c578; // "xEn3", the high bit of the E set
inline constexpr uint32_t kStartInfoVersion = 1;         // version 1 has the memory map

struct StartInfo {
  uint32_t magic;
  uint32_t version;
  uint32_t flags;
  uint32_t module_count;
  uint64_t module_list_gpa;
  uint64_t cmdline_gpa; // NUL-terminated
  uint64_t rsdp_gpa;    // 0: no ACPI
  uint64_t memory_map_gpa;
  uint32_t memory_map_entries;
  uint32_t reserved;
};
static_assert(sizeof(StartInfo) == 56);

struct Module {
  uint64_t gpa;
  uint64_t size_bytes;
  uint64_t cmdline_gpa; // 0: none
  uint64_t reserved;
};
static_assert(sizeof(Module) == 32);

enum class MemoryKind : uint32_t { kRam = 1, kReserved = 2 }; // XEN_HVM_MEMMAP_TYPE_*, as E820 has them

struct MemoryMapEntry {
  uint64_t gpa;
  uint64_t size_bytes;
  MemoryKind kind;
  uint32_t reserved;
};
static_assert(sizeof(MemoryMapEntry) == 24);

} // namespace stopvisor::vmm::pvh
