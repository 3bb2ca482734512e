// SPDX-License-Identifier: Apache-2.0
// When pre-copy has done what it can, and how much a guest that writes too fast is to be slowed: a model of the
// rate at which pages become dirty and of the link's, looked at after each round.
//
// Sending D pages takes D / speed, and meanwhile rate * (D / speed) pages become dirty: rounds shrink by
// rate / speed. What is left can be sent in the stop when D / speed fits into the downtime that was asked for.
// Where the ratio is too near to 1, or above it, the guest is held for that fraction of its time which makes it
// kShrink. It knows no guest and no clock.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace stopvisor::migrate {

struct RoundSeen {
  uint64_t sent = 0;                 // pages of the round that has ended
  std::chrono::nanoseconds took{0};  // from its begin until the destination had all of it in place
  uint64_t dirty = 0;                // pages written since the look that began it
  std::chrono::nanoseconds since{0}; // that look
};

class Convergence {
public:
  static constexpr double kShrink = 0.35;     // how much shorter each round is to be where the guest is slowed
  static constexpr double kGoodEnough = 0.7;  // a ratio that needs no slowing
  static constexpr double kMostSlowed = 0.98; // of the guest's time
  static constexpr unsigned kMostForFree = 4; // rounds after the downtime would be kept already

  // `overhead`: what a switch takes besides sending pages.
  Convergence(std::chrono::nanoseconds max_downtime, std::chrono::nanoseconds overhead) noexcept
      : max_downtime_(max_downtime), overhead_(overhead) {}

  enum class Next : uint8_t { kRound, kSwitch };
  struct Advice {
    Next next = Next::kRound;
    double slowed = 0;                    // the fraction of time in which the guest is to be held
    std::chrono::nanoseconds downtime{0}; // that a switch now would probably take
  };
  // CONTEXT: one thread.
  [[nodiscard]] Advice look(const RoundSeen& round) noexcept;

  [[nodiscard]] double pages_per_second() const noexcept { return speed_; } // of the link, destination included
  [[nodiscard]] double dirty_per_second() const noexcept { return rate_; } // as the guest would, were it not slowed

private:
  std::chrono::nanoseconds max_downtime_;
  std::chrono::nanoseconds overhead_;
  double speed_ = 0;
  double rate_ = 0;
  double slowed_ = 0;
  unsigned for_free_ = 0;
};

} // namespace stopvisor::migrate
