// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/rate_limit.h"

#include <algorithm>

namespace stopvisor::migrate {
namespace {
constexpr std::chrono::milliseconds kBurst{100};
}

void RateLimit::take(uint64_t bytes, const std::stop_token& stop) {
  if (bytes_per_second_ == 0)
    return;
  std::unique_lock lock(mutex_);
  const Clock::time_point begin = std::max(free_at_, Clock::now() - kBurst);
  const std::chrono::duration<double> lasts(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_));
  free_at_ = begin + std::chrono::duration_cast<Clock::duration>(lasts);
  (void)never_.wait_until(lock, stop, begin, [] { return false; });
}

} // namespace stopvisor::migrate
