// SPDX-License-Identifier: Apache-2.0
// A sleep that a stop ends.
#include <chrono>
#include <stop_token>
#include <thread>

#include <gtest/gtest.h>

#include "tools/migrate/waiting.h"

namespace stopvisor::migrate {
namespace {

using Clock = std::chrono::steady_clock;

TEST(SleepUntil, LastsUntilItsTime) {
  const auto until = Clock::now() + std::chrono::milliseconds(5);
  EXPECT_TRUE(sleep_until(until, {}));
  EXPECT_GE(Clock::now(), until);
  EXPECT_TRUE(sleep_until(until, {})); // which is over
}

TEST(SleepUntil, IsEndedByAStop) {
  std::stop_source stop;
  std::jthread asks([&] { stop.request_stop(); });
  EXPECT_FALSE(sleep_until(Clock::time_point::max(), stop.get_token()));
  EXPECT_FALSE(sleep_until(Clock::time_point::max(), stop.get_token())); // it was asked for before
  EXPECT_FALSE(sleep_until(Clock::time_point::min(), stop.get_token())); // and counts where both are there
}

} // namespace
} // namespace stopvisor::migrate
