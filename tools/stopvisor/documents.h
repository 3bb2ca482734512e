// SPDX-License-Identifier: Apache-2.0
// What several verbs do with the VM's answers and with durations.
#pragma once

#include <chrono>
#include <expected>
#include <optional>
#include <string>
#include <string_view>

#include "vmm/error.h"

namespace stopvisor::tools {

// Prints the VM's answer as the one document of --json, with the VM's name in it as "vm".
void print_vm_document(std::string_view vm, std::string_view answer);

// What finding a guest's kernel may take on a slow host, beyond the stop for it: added to a client's patience.
inline constexpr std::chrono::seconds kSearchTime{30};

// A --timeout or --max as milliseconds, rounded up. Where there is no --timeout the environment's STOPVISOR_TIMEOUT
// stands for it, and where that is not set either, `otherwise`. RETURNS: kUsage where it is no duration, or longer
// than an hour (a timeout) or a day (a maximum).
[[nodiscard]] std::expected<std::chrono::milliseconds, vmm::Error>
parse_timeout(std::string_view verb, const std::optional<std::string>& text, std::chrono::milliseconds otherwise);
[[nodiscard]] std::expected<std::chrono::milliseconds, vmm::Error> parse_max(std::string_view verb,
                                                                             std::string_view text);

// The path of a file of symbols as the VM's process, which has another working directory, can open it.
[[nodiscard]] std::string absolute_path(const std::string& path);
// `text` as the value of a field in a request's query.
[[nodiscard]] std::string query_value(std::string_view text);

// The answer is not what this command understands: a VM of another version, most likely.
[[nodiscard]] vmm::Error strange_answer(std::string_view verb, std::string_view vm);

} // namespace stopvisor::tools
