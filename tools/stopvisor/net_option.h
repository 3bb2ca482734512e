// SPDX-License-Identifier: Apache-2.0
// Parses `--net`: tap=IF[,mac=AA:BB:..] of a new machine, N=IF of one that comes by migration.
#pragma once

#include <expected>
#include <string>
#include <utility>

#include "vmm/error.h"
#include "vmm/net_config.h"

namespace stopvisor::tools {

// CONTEXT: any thread. RETURNS: kUsage; the object is the text.
[[nodiscard]] std::expected<vmm::NetConfig, vmm::Error> parse_net(const std::string& text);

// Parses `--net N=IF`, a tap for network N of a machine. CONTEXT and RETURNS: the same.
[[nodiscard]] std::expected<std::pair<size_t, std::string>, vmm::Error> parse_tap_place(const std::string& text);

} // namespace stopvisor::tools
