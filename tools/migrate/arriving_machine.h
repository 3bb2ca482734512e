// SPDX-License-Identifier: Apache-2.0
// The machine that a source describes: what is made of it here, and whether what was made can take its guest.
#pragma once

#include <expected>
#include <string>

#include "tools/migrate/messages.h"
#include "vmm/error.h"
#include "vmm/vm.h"

namespace stopvisor::migrate {

// For errors: who takes which guest, by its name there.
struct Arrival {
  std::string operation;
  std::string vm;
};

// As a configuration of ours: bare, held at its start, its disks not locked yet. CONTEXT: any thread.
// RETURNS: kRefused for what is no machine of ours, or does not fit together. `facts` may be anything.
[[nodiscard]] std::expected<vmm::VmConfig, vmm::Error> config_of(const Arrival& arrival, const MachineFacts& facts);

// Whether `vm`, made from that configuration, perhaps with other disks, has memory, disks and processors as there.
// CONTEXT: before anything moves. RETURNS: kRefused, naming what differs; errors of Vm::check_requirements().
[[nodiscard]] std::expected<void, vmm::Error> check_machine(const Arrival& arrival, const MachineFacts& facts,
                                                            const vmm::Vm& vm);

} // namespace stopvisor::migrate
