// SPDX-License-Identifier: Apache-2.0
// A link that is a command's stdin and stdout: exec:ssh HOST stopvisor run --incoming stdio:
#pragma once

#include <expected>
#include <memory>
#include <string_view>

#include "tools/migrate/address.h"
#include "tools/migrate/link.h"
#include "vmm/error.h"

namespace stopvisor::migrate {

// Runs `/bin/sh -c` with the address's command, in a process group of its own (a Ctrl-C is for us to see first, so
// it cannot ask for a password on the terminal) and with our stderr. The link's end hangs up, waits a moment for
// the command, and then ends its group, unless it is to be left alone. CONTEXT: any thread. RETURNS: kFailed where
// it cannot be started; what becomes of it is told by the link's errors.
[[nodiscard]] std::expected<std::unique_ptr<Link>, vmm::Error> start_command(std::string_view operation,
                                                                             const Address& address);

} // namespace stopvisor::migrate
