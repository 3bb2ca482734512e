// SPDX-License-Identifier: Apache-2.0
// A VM whose guest comes by migration, from the options of run.
#pragma once

#include <expected>

#include "tools/stopvisor/incoming_process.h"
#include "tools/stopvisor/run_options.h"
#include "vmm/error.h"

namespace stopvisor::tools {

// Without --incoming, none of the options that go with it alone. CONTEXT: any thread. RETURNS: kUsage.
[[nodiscard]] std::expected<void, vmm::Error> check_nothing_for_incoming(const RunOptions& options);

// The source describes the whole machine; what may differ here is where its disks, networks and serial port lead
// to. `json`: stdout is for one document. CONTEXT: --incoming is given; any thread. RETURNS: kUsage.
[[nodiscard]] std::expected<IncomingOrder, vmm::Error> incoming_order(const RunOptions& options, bool json);

} // namespace stopvisor::tools
