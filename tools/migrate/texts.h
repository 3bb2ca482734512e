// SPDX-License-Identifier: Apache-2.0
// Texts that came from, or go to, the other side of a migration: bounded, and harmless on somebody's terminal.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace stopvisor::migrate {

// `text` with every byte that is no part of a printable character made '?' (of UTF-8 as RFC 3629 has it, without
// the control characters of either set), cut at the end of a character to `most` bytes. What is printable and short
// enough comes back as it was. CONTEXT: any thread.
[[nodiscard]] std::string printable_text(std::string_view text, size_t most);

} // namespace stopvisor::migrate
