// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/convergence.h"

#include <algorithm>

namespace stopvisor::migrate {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr uint64_t kTellingPages = 256; // a round of fewer says little of the link's speed
constexpr double kLeastTime = 1e-6;     // of what was measured, so that nothing is divided by zero
constexpr double kWorthARound = 0.5;    // for free: where it at least halves what is left

double seconds(std::chrono::nanoseconds time) noexcept {
  return std::max(Seconds(time).count(), kLeastTime);
}

} // namespace

Convergence::Advice Convergence::look(const RoundSeen& round) noexcept {
  if (round.sent >= kTellingPages || speed_ == 0)
    speed_ = std::max(1.0, static_cast<double>(round.sent)) / seconds(round.took);
  const double ran = seconds(round.since) * (1 - slowed_);
  rate_ = static_cast<double>(round.dirty) / ran;
  const double to_send = static_cast<double>(round.dirty) / speed_;
  const Seconds downtime = Seconds(to_send) + overhead_;
  const double shrinks = rate_ * (1 - slowed_) / speed_;

  Advice advice;
  advice.downtime = std::chrono::duration_cast<std::chrono::nanoseconds>(downtime);
  advice.slowed = slowed_;
  if (advice.downtime <= max_downtime_) {
    const bool worth_it =
        shrinks < kWorthARound && Seconds(to_send) > Seconds(overhead_) && for_free_ < kMostForFree;
    for_free_ += worth_it ? 1 : 0;
    advice.next = worth_it ? Next::kRound : Next::kSwitch;
    return advice;
  }
  // What the guest may write at, for rounds to shrink as they should; never faster than it was let before: a guest
  // that writes less while it is slowed would be let go and slowed by turns.
  if (shrinks > kGoodEnough || slowed_ > 0)
    slowed_ = std::clamp(1 - kShrink * speed_ / std::max(rate_, 1.0), slowed_, kMostSlowed);
  advice.slowed = slowed_;
  return advice;
}

} // namespace stopvisor::migrate
