// SPDX-License-Identifier: Apache-2.0
// What the command itself does, and takes long: a signal calls it off, and a terminal shows how far it is.
#pragma once

#include <expected>
#include <functional>
#include <stop_token>
#include <string>

#include "vmm/error.h"
#include "vmm/progress.h"

namespace stopvisor::tools {

struct LongWork {
  std::stop_token stop;
  vmm::Progress& progress;
};

// Calls `work` once. SIGINT, SIGTERM, SIGHUP and SIGQUIT do not end the process meanwhile, but ask it to stop: so
// it leaves nothing half done. One that comes too late takes no result away. CONTEXT: the command's main thread,
// before it has others; blocks. RETURNS: the work's error, with a status of 128 and the signal where one called it
// off; kFailed where the host has no more descriptors or threads.
[[nodiscard]] std::expected<void, vmm::Error>
do_long_work(const std::string& operation,
             const std::function<std::expected<void, vmm::Error>(const LongWork&)>& work);

} // namespace stopvisor::tools
