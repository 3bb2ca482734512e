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

// A --timeout or --max as milliseconds, rounded up. RETURNS: kUsage where it is no duration, or longer than
// an hour (a timeout) or a day (`is_max`).
[[nodiscard]] std::expected<std::chrono::milliseconds, vmm::Error>
parse_timeout(std::string_view verb, const std::optional<std::string>& text, std::chrono::milliseconds otherwise);
[[nodiscard]] std::expected<std::chrono::milliseconds, vmm::Error> parse_max(std::string_view verb,
                                                                             std::string_view text);

// The answer is not what this command understands: a VM of another version, most likely.
[[nodiscard]] vmm::Error strange_answer(std::string_view verb, std::string_view vm);

} // namespace stopvisor::tools
