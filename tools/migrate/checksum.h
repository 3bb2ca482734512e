// SPDX-License-Identifier: Apache-2.0
// XXH3 as the frames and pages of a migration use it: against accidents, and against a guest that knows no secret.
//
// By the library's own choice of what this processor can do (xxh_x86dispatch.h): twice as fast as code for any
// x86-64, and each byte of memory is summed three times on its way.
#pragma once

#define XXH_STATIC_LINKING_ONLY // NOLINT: the library's own switch, for a state on the stack
#include <xxhash.h>

#include <xxh_x86dispatch.h>

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
