// SPDX-License-Identifier: Apache-2.0
// Measures what a patch adds to a stop: how long the guest is held by an empty stop, and by one that patches.
#pragma once

#include <cstdint>
#include <expected>

#include "tools/bench/percentiles.h"
#include "vmm/error.h"

namespace stopvisor::tools {

// One line of the table; times in nanoseconds.
struct PatchFigures {
  uint32_t cpus = 0;
  Percentiles empty;       // hold of a stop that does nothing
  Percentiles apply;       // hold of a stop that applies a patch of 16 sites of code, with all checks
  Percentiles revert;      // hold of the one that takes it back
  Percentiles apply_work;  // what the patch does in it, from everybody held to the last check or write
  Percentiles revert_work; // the same
  Percentiles data_work;   // the same of a patch of 16 sites of data
};

// CONTEXT: starts a VM in this process; blocks for a few seconds.
[[nodiscard]] std::expected<PatchFigures, vmm::Error> bench_patch(uint32_t cpus, uint32_t rounds);

} // namespace stopvisor::tools
