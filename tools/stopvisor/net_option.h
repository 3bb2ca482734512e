// SPDX-License-Identifier: Apache-2.0
// Parses `--net tap=IF[,mac=AA:BB:..]`.
#pragma once

#include <expected>
#include <string>

#include "vmm/error.h"
#include "vmm/net_config.h"

namespace stopvisor::tools {

// CONTEXT: any thread. RETURNS: kUsage; the object is the text.
[[nodiscard]] std::expected<vmm::NetConfig, vmm::Error> parse_net(const std::string& text);

} // namespace stopvisor::tools
