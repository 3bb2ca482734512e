// SPDX-License-Identifier: Apache-2.0
// The ACPI tables of a machine, and where they lie: hardware-reduced ACPI 6.5 (ADR 9).
//
// Hardware-reduced means that there is no SCI, no PM timer and no fixed register block: what a guest needs are the
// sleep registers, the reset register and the generic event device (devices/acpi_power.h).
#pragma once

#include <expected>
#include <string>
#include <vector>

#include "vmm/acpi/aml.h"
#include "vmm/acpi/platform.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"

namespace stopvisor::vmm::acpi {

struct Table {
  std::string signature;
  Gpa gpa;
  aml::Bytes bytes;
};

// All tables, with their addresses and checksums, the RSDP ("RSD PTR ") first, at kTablesGpa. CONTEXT: any thread.
[[nodiscard]] std::vector<Table> build_tables(const Platform& platform);

// Writes the tables and the generation ID. CONTEXT: before any vCPU runs, or under a stop.
// RETURNS: the RSDP's address; kFailed where memory is too small for them, or they for their place.
[[nodiscard]] std::expected<Gpa, Error> write_tables(GuestMemory& memory, const Platform& platform);

} // namespace stopvisor::vmm::acpi
