// SPDX-License-Identifier: Apache-2.0
// What is booted, by either protocol, and how vCPU 0 starts then.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

#include "vmm/address.h"

namespace stopvisor::vmm {

// Nothing of it is needed after it was loaded.
struct BootImage {
  std::span<const std::byte> kernel; // an ELF file or a bzImage
  std::span<const std::byte> initrd; // empty: none
  std::string_view cmdline;
  std::span<const std::byte> device_tree; // flattened; empty: none
  Gpa rsdp{};                             // of the ACPI tables; 0: none
};

// 32-bit protected mode, flat, no paging (xen/docs/misc/pvh.pandoc).
struct PvhEntry {
  uint64_t rip = 0;
  uint64_t rbx = 0; // hvm_start_info
};

// 64-bit mode, paging on, segments of the GDT given: code 0x10, data 0x18 (Linux Documentation/arch/x86/boot.rst,
// "64-bit Boot Protocol").
struct Linux64Entry {
  uint64_t rip = 0;
  uint64_t rsi = 0; // boot_params
  uint64_t cr3 = 0;
  uint64_t gdt_base = 0;
  uint16_t gdt_limit = 0;
};

inline constexpr uint16_t kLinuxCodeSelector = 0x10; // __BOOT_CS
inline constexpr uint16_t kLinuxDataSelector = 0x18; // __BOOT_DS

using BootEntry = std::variant<PvhEntry, Linux64Entry>;

} // namespace stopvisor::vmm
