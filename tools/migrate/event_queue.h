// SPDX-License-Identifier: Apache-2.0
// What happened, in the order in which it did, for one thread that decides what to do about it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace stopvisor::migrate {

// Of what one peer may say before it is listened to: it says a word or two.
inline constexpr size_t kMostWaiting = 256;

template <class Event>
class EventQueue {
public:
  // CONTEXT: any thread. RETURNS: whether fewer than kMostWaiting are there now; who is told that there are as many
  // has taken more from a peer than one has to say.
  bool push(Event event) {
    const std::lock_guard guard(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_one();
    return events_.size() < kMostWaiting;
  }
  // The next one; nothing where there was none until then. CONTEXT: one thread at a time; blocks.
  [[nodiscard]] std::optional<Event> next(std::chrono::steady_clock::time_point until) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, until, [this] { return !events_.empty(); }))
      return std::nullopt;
    Event event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

private:
  std::mutex mutex_; // a leaf
  std::condition_variable changed_;
  std::deque<Event> events_; // under mutex_
};

} // namespace stopvisor::migrate
