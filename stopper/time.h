// SPDX-License-Identifier: Apache-2.0
// The stopper's clock: monotonic, nanoseconds.
#pragma once

#include <chrono>

namespace stopvisor::stopper {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using Nanoseconds = std::chrono::nanoseconds;

// A deadline that never comes.
inline constexpr TimePoint kForever = TimePoint::max();

} // namespace stopvisor::stopper
