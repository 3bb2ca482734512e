// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/voice.h"

#include <chrono>
#include <tuple>
#include <utility>

namespace stopvisor::migrate {
namespace {

constexpr std::chrono::seconds kSignOfLife{1};

} // namespace

Voice::Voice(Link& link) : writer_(link), ticker_([this](const std::stop_token& stop) { tick(stop); }) {}

std::expected<void, vmm::Error> Voice::say(FrameKind kind, std::span<const std::byte> payload, uint16_t flags) {
  const std::lock_guard guard(mutex_);
  spoke_ = true;
  return writer_.write(kind, payload, flags);
}

std::expected<void, vmm::Error> Voice::say(FrameKind kind, std::span<const std::span<const std::byte>> parts,
                                           uint16_t flags) {
  const std::lock_guard guard(mutex_);
  spoke_ = true;
  return writer_.write(kind, parts, flags);
}

FrameTally Voice::tally() const {
  const std::lock_guard guard(mutex_);
  return writer_.tally();
}

void Voice::tick(const std::stop_token& stop) {
  std::unique_lock lock(tick_mutex_);
  for (;;) {
    ticks_.wait_for(lock, stop, kSignOfLife, [] { return false; });
    if (stop.stop_requested())
      return;
    const std::unique_lock speaking(mutex_, std::try_to_lock); // held: somebody speaks just now
    if (speaking.owns_lock() && !std::exchange(spoke_, false))
      std::ignore = writer_.write(FrameKind::kAlive,
                                  std::span<const std::byte>()); // an error is found by who has something to say
  }
}

} // namespace stopvisor::migrate
