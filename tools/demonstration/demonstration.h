// SPDX-License-Identifier: Apache-2.0
// A busy guest, stopped and changed before the reader's eyes, every figure read from the guest itself.
#pragma once

#include <expected>

#include "vmm/error.h"

namespace stopvisor::tools {

// Boots the probe guest with 4 vCPUs in this process and prints what it does to stdout as it goes.
// RETURNS: an error where the guest saw anything torn, or saw nothing torn where it must.
// CONTEXT: blocks for some seconds.
[[nodiscard]] std::expected<void, vmm::Error> demonstrate();

} // namespace stopvisor::tools
