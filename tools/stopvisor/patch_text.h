// SPDX-License-Identifier: Apache-2.0
// What `patch` shows people of the VM's answers.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace stopvisor::tools {

// Of check, apply, replace, revert, verify and confirm. CONTEXT, all: they throw where the answer is not that of
// our own server.
[[nodiscard]] std::string patch_change_text(const nlohmann::ordered_json& answer, const std::string& action);
[[nodiscard]] std::string patch_list_text(const nlohmann::ordered_json& answer, const std::string& action);
[[nodiscard]] std::string patch_record_text(const nlohmann::ordered_json& answer, const std::string& action);

} // namespace stopvisor::tools
