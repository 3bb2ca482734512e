// SPDX-License-Identifier: Apache-2.0
// Follows a job of a VM to its end: progress on a terminal, Ctrl-C as its cancellation.
#pragma once

#include <cstdint>
#include <expected>
#include <string>

#include "tools/client/client.h"
#include "vmm/error.h"

namespace stopvisor::tools {

// CONTEXT: the command's main thread; blocks until the job is over. SIGINT and SIGTERM cancel it meanwhile; the job
// goes on where the connection is lost. RETURNS: the job's result, a JSON document; its error.
[[nodiscard]] std::expected<std::string, vmm::Error> watch_job(Client& client, const std::string& operation,
                                                               uint64_t job);

} // namespace stopvisor::tools
