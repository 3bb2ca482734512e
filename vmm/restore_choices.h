// SPDX-License-Identifier: Apache-2.0
// What of a restored guest is not to be as it was.
#pragma once

#include <cstdint>

namespace stopvisor::vmm {

// What a guest reads as the wall clock of kvmclock. Its clock itself goes on without a jump.
enum class WallClock : uint8_t {
  kResume, // what it read before: the time goes on from the moment it was saved in
  kHost,   // what makes it the host's
};

struct RestoreChoices {
  // The guest is told that it is another one, by a new VM generation ID: what it derived from random numbers before
  // must not be used twice. Not for a guest of which there is no other.
  bool new_generation = true;
  WallClock wall_clock = WallClock::kResume;
};

} // namespace stopvisor::vmm
