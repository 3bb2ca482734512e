// SPDX-License-Identifier: Apache-2.0
// What messages cannot say, be it to be sent or received.
#pragma once

#include <vector>

#include "tools/migrate/messages.h"

namespace stopvisor::migrate {

// CONTEXT, of all: any thread. RETURNS: what is wrong, a literal; null where it is fine.
[[nodiscard]] const char* fault_of(const std::vector<vmm::StateSection>& sections);
[[nodiscard]] const char* fault_of(const std::vector<LinkDigest>& links) noexcept;
[[nodiscard]] const char* fault_of(const MachineFacts& facts);

} // namespace stopvisor::migrate
