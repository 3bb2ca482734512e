// SPDX-License-Identifier: Apache-2.0
// The machine that a source describes: what is made of it here, and whether what was made can take its guest.
#pragma once

#include <expected>
#include <string>

#include "tools/migrate/messages.h"
#include "vmm/error.h"
#include "vmm/vm.h"

namespace stopvisor::migrate {

// As a configuration of ours: bare, held at its start, its disks not locked yet. `vm`, here and below: the guest's
// name there, for errors. CONTEXT: any thread.
// RETURNS: kRefused for what is no machine of ours, or does not fit together. `facts` may be anything.
[[nodiscard]] std::expected<vmm::VmConfig, vmm::Error> config_of(const std::string& operation,
                                                                 const std::string& vm, const MachineFacts& facts);

// Whether `made`, from that configuration, perhaps with other disks, has memory, disks and processors as there.
// CONTEXT: before anything moves. RETURNS: kRefused, naming what differs; errors of Vm::check_requirements().
[[nodiscard]] std::expected<void, vmm::Error> check_machine(const std::string& operation, const std::string& vm,
                                                            const MachineFacts& facts, const vmm::Vm& made);

} // namespace stopvisor::migrate
