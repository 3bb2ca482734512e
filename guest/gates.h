// SPDX-License-Identifier: Apache-2.0
// The interrupt descriptor table that boot.S laid out, and what its gates lead to.
#pragma once

namespace stopvisor::probe {

// Fills every gate. Until then an exception ends in a triple fault. CONTEXT: vCPU 0, first thing.
void fill_gates();

} // namespace stopvisor::probe
