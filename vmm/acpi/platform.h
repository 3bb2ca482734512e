// SPDX-License-Identifier: Apache-2.0
// What of a machine its ACPI tables depend on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmm/address.h"

namespace stopvisor::vmm::acpi {

// Registers of a virtio device, and its interrupt line.
struct VirtioMmioPlace {
  Gpa gpa;
  uint32_t gsi = 0;
};
inline constexpr uint32_t kVirtioMmioBytes = 0x1000;

struct Platform {
  std::vector<uint32_t> apic_ids; // of the vCPUs that the guest is to start, the first one's first
  std::vector<VirtioMmioPlace> virtio;
  bool keyboard = false; // an 8042
  std::array<std::byte, 16> generation_id{};
};

// The tables lie in memory that is told to be reserved: the RSDP first, the VM generation ID last.
inline constexpr uint64_t kTablesGpa = 0xe'0000;
inline constexpr uint64_t kTablesEnd = 0xf'e000;
inline constexpr uint64_t kGenerationIdGpa = kTablesEnd; // in a page of its own, as its specification has it

// The interrupt of the generic event device.
inline constexpr uint32_t kEventGsi = 11;

} // namespace stopvisor::vmm::acpi
