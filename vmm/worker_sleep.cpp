// SPDX-License-Identifier: Apache-2.0
#include "vmm/worker_sleep.h"

#include <poll.h>

#include <array>

#include "stopper/futex_platform.h"
#include "vmm/event_fd.h"

namespace stopvisor::vmm {

void FutexSleep::wake() noexcept {
  calls_.fetch_add(1, std::memory_order_release); // W1, pairs with look()
  stopper::FutexPlatform::wake_all(calls_);
}

void FutexSleep::look() noexcept {
  seen_ = calls_.load(std::memory_order_acquire); // W1
}

void FutexSleep::sleep(const Watch& /*also*/) noexcept {
  stopper::FutexPlatform::wait(calls_, seen_, stopper::kForever);
}

std::expected<std::unique_ptr<DescriptorSleep>, Error> DescriptorSleep::create() {
  auto event = make_event("worker");
  if (!event)
    return std::unexpected(event.error());
  return std::unique_ptr<DescriptorSleep>(new DescriptorSleep(std::move(*event)));
}

void DescriptorSleep::wake() noexcept {
  raise_event(event_.get());
}

// The kernel orders the counter's write before the read that sees it, and with it what each side did (an eventfd
// has a lock of its own). A counter that is raised and not cleared here ends the next sleep at once: so the system
// call is spared until poll() has seen one.
void DescriptorSleep::look() noexcept {
  if (std::exchange(raised_, false))
    clear_event(event_.get());
}

void DescriptorSleep::sleep(const Watch& also) noexcept {
  std::array<pollfd, 2> places{{{event_.get(), POLLIN, 0}, {also.fd, also.events, 0}}};
  (void)::poll(places.data(), also.fd >= 0 ? 2 : 1, -1); // EINTR: early
  raised_ = (places[0].revents & POLLIN) != 0;
}

} // namespace stopvisor::vmm
