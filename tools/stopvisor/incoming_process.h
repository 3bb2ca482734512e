// SPDX-License-Identifier: Apache-2.0
// Runs one VM whose guest comes by migration, from waiting for it to its end.
#pragma once

#include <chrono>
#include <expected>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "tools/migrate/address.h"
#include "tools/stopvisor/vm_process.h"
#include "vmm/restore_choices.h"
#include "vmm/vm.h"

namespace stopvisor::tools {

struct IncomingOrder {
  migrate::Address from;
  bool insecure = false;
  std::optional<std::string> name;     // none: as at the source
  std::map<size_t, std::string> disks; // images in the place of the source's, by number
  std::map<size_t, std::string> taps;  // taps, the same
  std::optional<vmm::MemoryBacking> backing;
  vmm::SerialTarget serial = vmm::SerialTarget::kNone;
  std::string serial_path;
  bool paused = false; // it is not to run when it is here
  vmm::WallClock wall_clock = vmm::WallClock::kResume;
  std::chrono::nanoseconds keep = std::chrono::minutes(5);
};

// As run_vm(). `waiting` is called once, when a source can call: with the place of the name, where there is one by
// then, and where a source finds us.
[[nodiscard]] std::expected<VmProcessEnd, vmm::Error>
run_incoming(const IncomingOrder& order,
             const std::function<void(const vmm::ControlPlace* place, const std::string& where)>& waiting);

} // namespace stopvisor::tools
