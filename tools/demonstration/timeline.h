// SPDX-License-Identifier: Apache-2.0
// A stop report as a small picture for a terminal.
#pragma once

#include <string>

#include "stopper/report.h"
#include "vmm/vm.h"

namespace stopvisor::tools {

// One line a participant of `vm`, time from left to right: '.' kicked and still in the guest, '-' out and on its
// way to the barrier, '#' held. Times in microseconds from the first kick.
[[nodiscard]] std::string draw_timeline(const vmm::Vm& vm, const stopper::StopReport& report, unsigned columns);

} // namespace stopvisor::tools
