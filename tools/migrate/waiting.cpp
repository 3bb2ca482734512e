// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/waiting.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <condition_variable>
#include <mutex>
#include <utility>

namespace stopvisor::migrate {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

vmm::UniqueFd make_bell() {
  auto event = vmm::make_event("");
  return event ? std::move(*event) : vmm::UniqueFd();
}

// For poll(): rounded up, so that it does not come back before the time.
int left_until(Clock::time_point until) noexcept {
  const Clock::time_point now = Clock::now();
  if (until <= now)
    return 0;
  const auto left = std::chrono::ceil<milliseconds>(until - now).count();
  return static_cast<int>(std::min<decltype(left)>(left, INT_MAX));
}

} // namespace

Clock::time_point after(milliseconds limit) noexcept {
  const Clock::time_point now = Clock::now();
  const bool reckonable = limit < std::chrono::floor<milliseconds>(Clock::time_point::max() - now);
  return reckonable ? now + std::max(limit, milliseconds(0)) : Clock::time_point::max();
}

Waited wait_on(int fd, short events, int stop, Clock::time_point until) noexcept {
  std::array<pollfd, 2> waits{pollfd{.fd = fd, .events = events, .revents = 0},
                              pollfd{.fd = stop, .events = POLLIN, .revents = 0}};
  for (;;) {
    const int limit = left_until(until);
    const int ready = ::poll(waits.data(), waits.size(), limit);
    if (ready > 0)
      return waits[1].revents != 0 ? Waited::kStopped : Waited::kReady;
    if (ready == 0 && (limit < INT_MAX || Clock::now() >= until))
      return Waited::kTimeUp;
    if (ready < 0 && errno != EINTR)
      return Waited::kTimeUp; // no memory for two descriptors: as good as an end
  }
}

bool sleep_until(Clock::time_point until, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never; // notified by nobody but the stop token
  std::unique_lock lock(mutex);
  (void)never.wait_until(lock, stop, until, [] { return false; });
  return !stop.stop_requested();
}

StopBell::StopBell(const std::stop_token& stop) : fd_(make_bell()), callback_(stop, Ring{fd_.get()}) {}

} // namespace stopvisor::migrate
