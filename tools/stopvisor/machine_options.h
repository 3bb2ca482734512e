// SPDX-License-Identifier: Apache-2.0
// The machine of a new VM, from the options of run or from the file of its --machine.
#pragma once

#include <expected>

#include "tools/stopvisor/run_options.h"
#include "vmm/error.h"
#include "vmm/vm.h"

namespace stopvisor::tools {

// What the options say of the machine itself: not its name, its serial port and how it starts. Where --machine
// describes it, nothing else may. CONTEXT: any thread; blocks as read_machine_file() does.
// RETURNS: kUsage; errors of read_machine_file().
[[nodiscard]] std::expected<vmm::VmConfig, vmm::Error> new_machine(const RunOptions& options);

} // namespace stopvisor::tools
