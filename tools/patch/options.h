// SPDX-License-Identifier: Apache-2.0
// A request's options, read strictly.
#pragma once

#include <expected>

#include "tools/patch/engine.h"
#include "vmm/control/fields.h"
#include "vmm/control/peer.h"

namespace stopvisor::patch {

// Takes what is left of `fields` and finishes them. `confirmable`: a time to confirm within may be given.
// RETURNS: kUsage.
[[nodiscard]] std::expected<Options, vmm::Error> read_options(const char* operation, vmm::Fields& fields,
                                                              const vmm::Peer& peer, bool confirmable);

} // namespace stopvisor::patch
