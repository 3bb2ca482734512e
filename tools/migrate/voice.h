// SPDX-License-Identifier: Apache-2.0
// Who speaks on a link: frames of several threads, one after the other, and a sign of life where nobody has
// anything to say.
//
// A peer takes silence for a link that is gone (Link::kPatience), so each side says something once a second.
#pragma once

#include <condition_variable>
#include <expected>
#include <mutex>
#include <span>
#include <thread>

#include "tools/migrate/frame.h"
#include "vmm/error.h"

namespace stopvisor::migrate {

class Voice {
public:
  // `link` outlives the object.
  explicit Voice(Link& link);
  Voice(const Voice&) = delete;
  Voice& operator=(const Voice&) = delete;

  // CONTEXT: any thread; blocks while the peer does not read. RETURNS: Link::write()'s errors.
  [[nodiscard]] std::expected<void, vmm::Error> say(FrameKind kind, std::span<const std::byte> payload,
                                                    uint16_t flags = 0);
  [[nodiscard]] std::expected<void, vmm::Error>
  say(FrameKind kind, std::span<const std::span<const std::byte>> parts, uint16_t flags = 0);
  // Of what was said. CONTEXT: any thread.
  [[nodiscard]] FrameTally tally() const;

private:
  void tick(const std::stop_token& stop);

  mutable std::mutex mutex_; // held while a frame is written
  FrameWriter writer_;       // under mutex_
  bool spoke_ = false;       // under mutex_: since the last tick
  std::mutex tick_mutex_;    // of the ticker's wait alone
  std::condition_variable_any ticks_;
  std::jthread ticker_; // last: it uses all of the above
};

} // namespace stopvisor::migrate
