// SPDX-License-Identifier: Apache-2.0
// A limit on how many bytes a second are sent, over all links together.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <stop_token>

namespace stopvisor::migrate {

class RateLimit {
public:
  // 0: none.
  explicit RateLimit(uint64_t bytes_per_second) noexcept : bytes_per_second_(bytes_per_second) {}

  // Waits until these bytes may be sent, or `stop` is asked for. Where nothing was sent for a while, a tenth of a
  // second's worth may go at once. CONTEXT: any thread; blocks.
  void take(uint64_t bytes, const std::stop_token& stop);
  [[nodiscard]] uint64_t bytes_per_second() const noexcept { return bytes_per_second_; }

private:
  using Clock = std::chrono::steady_clock;
  const uint64_t bytes_per_second_;
  std::mutex mutex_;
  Clock::time_point free_at_{}; // under mutex_: when all that was taken has been sent at that rate
};

} // namespace stopvisor::migrate
