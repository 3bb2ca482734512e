// SPDX-License-Identifier: Apache-2.0
// Whether a state fits into a machine: what both are made of, by their descriptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "vmm/error.h"

namespace stopvisor::vmm {

// A machine's description (machine_description.h), and how many vCPUs it has now, which that does not tell.
struct MachineShape {
  std::span<const std::byte> tree; // aligned to 8
  uint32_t cpus = 0;
};

// Compares memory and where it lies, vCPUs, how many of them there may be, timers and virtio devices: what a state
// has values of. Paths, names and what is booted may differ. `saved` may be anything. CONTEXT: any thread.
// RETURNS: kUsage, naming each difference; kFailed where a description is none.
[[nodiscard]] std::expected<void, Error> check_machine(const MachineShape& saved, const MachineShape& here);

} // namespace stopvisor::vmm
