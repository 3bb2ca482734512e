// SPDX-License-Identifier: Apache-2.0
// Waits for a descriptor or for a time, and no longer than until somebody says stop.
#pragma once

#include <chrono>
#include <cstdint>
#include <stop_token>

#include "vmm/event_fd.h"
#include "vmm/unique_fd.h"

namespace stopvisor::migrate {

enum class Waited : uint8_t { kReady, kStopped, kTimeUp };

// `limit` from now; for ever where that is further than a clock goes.
[[nodiscard]] std::chrono::steady_clock::time_point after(std::chrono::milliseconds limit) noexcept;

// Waits for `events` of `fd`, or its error or hang-up, which a call on it will tell. `stop`: an eventfd, which wins
// where both are there; -1: none. A time that is over still looks once. CONTEXT: any thread; blocks.
[[nodiscard]] Waited wait_on(int fd, short events, int stop, std::chrono::steady_clock::time_point until) noexcept;

// Sleeps until then, or until a stop is asked for. CONTEXT: any thread; blocks. RETURNS: whether nobody said stop.
bool sleep_until(std::chrono::steady_clock::time_point until, const std::stop_token& stop);

// An eventfd that is raised when a stop is asked for.
class StopBell {
public:
  explicit StopBell(const std::stop_token& stop);
  [[nodiscard]] int fd() const noexcept { return fd_.get(); } // -1: the host has no more descriptors

private:
  struct Ring {
    int fd;
    void operator()() const noexcept {
      if (fd >= 0)
        vmm::raise_event(fd);
    }
  };
  vmm::UniqueFd fd_;
  std::stop_callback<Ring> callback_; // goes first: what it raises is still there
};

} // namespace stopvisor::migrate
