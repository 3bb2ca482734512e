// SPDX-License-Identifier: Apache-2.0
// XXH3 as the frames and pages of a migration use it: against accidents, and against a guest that knows no secret.
//
// Of code that is compiled into each user (XXH_INLINE_ALL), so only .cpp files include it.
#pragma once

#define XXH_INLINE_ALL // NOLINT: the library's own switch, for code without a call
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace stopvisor::migrate {

[[nodiscard]] inline uint64_t xxh3_of(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

// Of pieces, one after the other.
class Xxh3 {
public:
  Xxh3() noexcept { XXH3_64bits_reset(&state_); }
  void add(std::span<const std::byte> bytes) noexcept { XXH3_64bits_update(&state_, bytes.data(), bytes.size()); }
  [[nodiscard]] uint64_t finish() const noexcept { return XXH3_64bits_digest(&state_); }

private:
  XXH3_state_t state_;
};

} // namespace stopvisor::migrate
