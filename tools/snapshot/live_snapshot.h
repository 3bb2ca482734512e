// SPDX-License-Identifier: Apache-2.0
// A snapshot of a running VM whose guest is held for an instant only.
#pragma once

#include <chrono>
#include <expected>
#include <functional>
#include <string>

#include "tools/snapshot/chain.h"
#include "tools/snapshot/writer.h"
#include "vmm/frozen_memory.h"
#include "vmm/vm.h"

namespace stopvisor::snapshot {

struct LiveOptions {
  CreateOptions create;          // its stop is for all of it
  vmm::FreezeOptions freeze;     // but for its operation and its stop, which are create's
  bool disks = false;            // with images of those that the guest can write; made in the stop
  const Chain* parent = nullptr; // write only what is not as there: difference()
  std::chrono::nanoseconds stop_within = std::chrono::seconds(5); // for the guest to stop, once memory is protected
  std::function<void(const char*)> begin_phase = [](const char*) {};
  std::function<void(Contents&)> add_more = [](Contents&) {}; // under the stop
  std::function<void()> at_instant = [] {};                   // under the stop, for tests
};

struct LiveCreated {
  Created made;
  std::chrono::nanoseconds held_for{0}; // as the guest felt it
  std::chrono::nanoseconds callback{0}; // of it, what was done under the stop
  vmm::FreezeFigures figures;
};

// CONTEXT: any thread but a participant's; blocks. RETURNS: errors of LiveMemory, the stop's and create()'s; "the
// VM ended meanwhile". Whatever happens, the VM goes on as before.
[[nodiscard]] std::expected<LiveCreated, vmm::Error> create_live(vmm::Vm& vm, const std::string& directory,
                                                                 const LiveOptions& options);

} // namespace stopvisor::snapshot
