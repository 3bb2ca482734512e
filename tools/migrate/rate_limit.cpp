// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/rate_limit.h"

#include <algorithm>

#include "tools/migrate/waiting.h"

namespace stopvisor::migrate {
namespace {
constexpr std::chrono::milliseconds kBurst{100};
}

void RateLimit::take(uint64_t bytes, const std::stop_token& stop) {
  if (bytes_per_second_ == 0)
    return;
  const std::chrono::duration<double> lasts(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_));
  Clock::time_point begin;
  {
    const std::lock_guard guard(mutex_);
    begin = std::max(free_at_, Clock::now() - kBurst);
    free_at_ = begin + std::chrono::duration_cast<Clock::duration>(lasts);
  }
  (void)sleep_until(begin, stop);
}

} // namespace stopvisor::migrate
