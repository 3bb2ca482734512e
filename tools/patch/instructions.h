// SPDX-License-Identifier: Apache-2.0
// Where a function's instructions begin, and where its branches lead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <vector>

namespace stopvisor::patch {

struct Instruction {
  uint64_t at = 0;
  uint8_t length = 0;
  bool repeats = false;           // has a REP prefix: it may be interrupted, and go on, with RIP at its beginning
  std::optional<uint64_t> target; // of a branch or call whose target is in the instruction

  [[nodiscard]] uint64_t end() const noexcept { return at + length; }
};

// Decodes `code`, which lies at `base`, one instruction after the other up to its end.
// CONTEXT: any thread, does not block; some 100 ns an instruction, so before a stop.
// RETURNS: the address of what is no whole instruction.
[[nodiscard]] std::expected<std::vector<Instruction>, uint64_t> decode(std::span<const std::byte> code,
                                                                       uint64_t base, bool long_mode);

} // namespace stopvisor::patch
