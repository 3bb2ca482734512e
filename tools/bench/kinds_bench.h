// SPDX-License-Identifier: Apache-2.0
// The kinds of stop beside each other: of one vCPU, of two, of all; with and without lifting who is late.
#pragma once

#include <expected>

#include "tools/bench/stop_bench.h"
#include "vmm/error.h"

namespace stopvisor::tools {

// Fills figures.lifted and figures.plain. CONTEXT: starts a VM in this process; blocks.
[[nodiscard]] std::expected<void, vmm::Error> measure_kinds(StopFigures& figures, const StopBenchOptions& options);

} // namespace stopvisor::tools
