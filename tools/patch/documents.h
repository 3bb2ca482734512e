// SPDX-License-Identifier: Apache-2.0
// What the engine says, as JSON documents of the control API.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "tools/patch/engine.h"
#include "vmm/control/request.h"

namespace stopvisor::patch {

[[nodiscard]] nlohmann::ordered_json document_of(const Outcome& outcome);
// One line of the list; `now` for how long it may still wait to be confirmed.
[[nodiscard]] nlohmann::ordered_json summary_of(const Record& record, SteadyTime now);
// All of it: manifest, sites with what was there, and what it cost.
[[nodiscard]] nlohmann::ordered_json document_of(const Record& record, SteadyTime now);
[[nodiscard]] nlohmann::ordered_json document_of(const Event& event);
// The error document, with every reason in it.
[[nodiscard]] vmm::ApiReply reply_of(const Refusal& refusal);
[[nodiscard]] vmm::ApiReply reply_of(const nlohmann::ordered_json& document);

} // namespace stopvisor::patch
