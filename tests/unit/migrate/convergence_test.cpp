// SPDX-License-Identifier: Apache-2.0
// When pre-copy goes over to the switch, and how much it slows a guest: the model against guests made of numbers.
#include "tools/migrate/convergence.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <gtest/gtest.h>

namespace stopvisor::migrate {
namespace {

using namespace std::chrono_literals;
using Seconds = std::chrono::duration<double>;

// A guest that writes to `pages` pages one after the other, round and round, `rate` of them a second, and a link
// that carries `speed`.
struct Guest {
  double pages = 0;
  double rate = 0;
  double speed = 0;

  [[nodiscard]] double dirty_after(double seconds, double slowed) const {
    return std::min(pages, rate * (1 - slowed) * seconds);
  }
};

struct Outcome {
  unsigned rounds = 0;
  double slowed = 0;   // in the last round
  Seconds downtime{0}; // of the pages that are left
  bool switched = false;
};

std::chrono::nanoseconds nanoseconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Seconds(seconds));
}

Outcome migrate(const Guest& guest, std::chrono::nanoseconds max_downtime, double memory_pages) {
  Convergence model(max_downtime, 2ms);
  Outcome outcome;
  double to_send = memory_pages;
  for (outcome.rounds = 1; outcome.rounds <= 100; ++outcome.rounds) {
    const double took = to_send / guest.speed;
    const double dirty = guest.dirty_after(took, outcome.slowed);
    const auto advice = model.look({.sent = static_cast<uint64_t>(to_send),
                                    .took = nanoseconds(took),
                                    .dirty = static_cast<uint64_t>(dirty),
                                    .since = nanoseconds(took)});
    outcome.downtime = Seconds(dirty / guest.speed);
    if (advice.next == Convergence::Next::kSwitch) {
      outcome.switched = true;
      return outcome;
    }
    outcome.slowed = advice.slowed;
    to_send = dirty;
  }
  return outcome;
}

constexpr double kGiB = 262144; // pages

TEST(Convergence, SwitchesAtOnceWhereTheGuestWritesNothing) {
  const Outcome outcome = migrate({.pages = 0, .rate = 0, .speed = kGiB}, 50ms, kGiB);
  EXPECT_TRUE(outcome.switched);
  EXPECT_EQ(outcome.rounds, 1U);
  EXPECT_EQ(outcome.slowed, 0);
}

TEST(Convergence, SlowsNobodyWhoWritesAtHalfTheSpeedOfTheLink) {
  const Outcome outcome = migrate({.pages = kGiB, .rate = kGiB / 2, .speed = kGiB}, 50ms, kGiB);
  EXPECT_TRUE(outcome.switched);
  EXPECT_EQ(outcome.slowed, 0);
  EXPECT_LE(outcome.downtime, 50ms);
}

TEST(Convergence, SlowsWhoWritesFasterThanTheLinkUntilTheDowntimeIsKept) {
  for (const double faster : {0.8, 1.0, 1.5, 4.0, 20.0})
    for (const auto downtime : {10ms, 50ms, 300ms}) {
      const Outcome outcome = migrate({.pages = 0.9 * kGiB, .rate = faster * kGiB, .speed = kGiB}, downtime, kGiB);
      EXPECT_TRUE(outcome.switched) << faster;
      EXPECT_LE(outcome.downtime, downtime) << faster;
      EXPECT_GT(outcome.slowed, 0) << faster;
      EXPECT_LE(outcome.slowed, Convergence::kMostSlowed);
      EXPECT_LE(outcome.rounds, 20U) << faster;
    }
}

TEST(Convergence, SendsWhatALittleMoreTimeMakesLess) {
  // 40 ms would be kept after the first round; another one costs little and leaves next to nothing.
  const Outcome outcome = migrate({.pages = kGiB, .rate = kGiB / 30, .speed = kGiB}, 50ms, kGiB);
  EXPECT_TRUE(outcome.switched);
  EXPECT_GT(outcome.rounds, 1U);
  EXPECT_LE(outcome.downtime, 5ms);
}

TEST(Convergence, DoesNotSwitchWhereTheGuestCannotBeSlowedEnough) {
  const Outcome outcome = migrate({.pages = kGiB, .rate = 1000 * kGiB, .speed = kGiB / 100}, 10ms, kGiB);
  EXPECT_FALSE(outcome.switched);
  EXPECT_EQ(outcome.slowed, Convergence::kMostSlowed);
}

TEST(Convergence, TellsTheRateTheGuestWouldWriteAtWereItNotSlowed) {
  Convergence model(10ms, 2ms);
  (void)model.look({.sent = 100'000, .took = 1s, .dirty = 150'000, .since = 1s});
  EXPECT_NEAR(model.pages_per_second(), 100'000, 1);
  EXPECT_NEAR(model.dirty_per_second(), 150'000, 1);
  const auto advice = model.look({.sent = 100'000, .took = 1s, .dirty = 30'000, .since = 1s});
  EXPECT_GT(advice.slowed, 0.7);
  EXPECT_GT(model.dirty_per_second(), 100'000); // 30,000 in the fraction of the time that it ran
}

TEST(Convergence, LooksAtNothingWithoutDividingByIt) {
  Convergence model(10ms, 2ms);
  const auto advice = model.look({.sent = 0, .took = 0ns, .dirty = 0, .since = 0ns});
  EXPECT_EQ(advice.next, Convergence::Next::kSwitch);
  EXPECT_FALSE(std::isnan(advice.slowed));
}

} // namespace
} // namespace stopvisor::migrate
