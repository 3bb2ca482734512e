// SPDX-License-Identifier: Apache-2.0
// Numbers from a seed, the same ones for the same seed.
#pragma once

#include <cstdint>

namespace stopvisor::stress {

// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
constexpr uint64_t mix(uint64_t value) noexcept {
  value = (value ^ value >> 30) * 0xbf58'476d'1ce4'e5b9;
  value = (value ^ value >> 27) * 0x94d0'49bb'1331'11eb;
  return value ^ value >> 31;
}

// CONTEXT: one thread's own.
class Random {
public:
  explicit constexpr Random(uint64_t seed) noexcept : state_(seed) {}
  constexpr uint64_t next() noexcept { return mix(state_ += 0x9e37'79b9'7f4a'7c15); }
  constexpr uint32_t below(uint32_t count) noexcept { return static_cast<uint32_t>(next() % count); }
  constexpr bool one_in(uint32_t count) noexcept { return below(count) == 0; }

private:
  uint64_t state_;
};

} // namespace stopvisor::stress
