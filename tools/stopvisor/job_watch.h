// SPDX-License-Identifier: Apache-2.0
// Has a VM do a job, and follows it to its end: progress on a terminal, Ctrl-C as its cancellation.
#pragma once

#include <expected>
#include <functional>
#include <string>
#include <string_view>

#include "tools/client/client.h"
#include "vmm/error.h"

namespace stopvisor::tools {

// POST `target` with `body` begins it. CONTEXT: the command's main thread; blocks until the job is over. SIGINT and
// SIGTERM cancel it, from before it begins; the job goes on where the connection is lost. RETURNS: the job's
// result, a JSON document; why it was not begun; its error.
// `watch`, where given, sees each phase of the job once.
[[nodiscard]] std::expected<std::string, vmm::Error>
run_job(Client& client, const std::string& operation, std::string_view target, std::string_view body,
        const std::function<void(const std::string& phase)>& watch = {});

} // namespace stopvisor::tools
