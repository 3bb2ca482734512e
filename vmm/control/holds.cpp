// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/holds.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

namespace stopvisor::vmm {
namespace {

constexpr size_t kMaxLeasesOfConnection = 64;

} // namespace

Holds::~Holds() {
  {
    const std::lock_guard guard(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (watcher_.joinable())
    watcher_.join();
}

// Of a hold that was taken. While it was waited for, close() may have come: whoever moves the guest has seen the
// book by then, and a hold that is not in it would be one of a guest that runs elsewhere.
std::expected<HoldId, Error> Holds::book_unless_closed(const char* operation, const Hold& hold) {
  std::expected<void, Error> open;
  {
    const std::lock_guard guard(mutex_);
    open = refuse_if_closed(operation);
    if (open) {
      holds_.emplace(++last_id_, hold);
      return last_id_;
    }
  }
  target_.release();
  return std::unexpected(std::move(open.error()));
}

void Holds::adopt_pause(Peer peer) {
  const std::lock_guard guard(mutex_);
  holds_.emplace(
      ++last_id_,
      Hold{.kind = Hold::Kind::kPause, .peer = peer, .connection = 0, .since = HoldClock::now(), .until = {}});
}

void Holds::close(Error why) noexcept {
  const std::lock_guard guard(mutex_);
  closed_ = std::move(why);
}

void Holds::open() noexcept {
  const std::lock_guard guard(mutex_);
  closed_.reset();
}

std::expected<void, Error> Holds::check_open(const char* operation) const {
  const std::lock_guard guard(mutex_);
  return refuse_if_closed(operation);
}

std::expected<void, Error> Holds::refuse_if_closed(const char* operation) const {
  if (!closed_)
    return {};
  return std::unexpected(Error{operation, "", closed_->reason, closed_->status});
}

std::expected<HoldId, Error> Holds::pause(Peer peer, HoldClock::time_point deadline) {
  if (auto open = check_open("pause"); !open)
    return std::unexpected(std::move(open.error()));
  if (auto held = target_.acquire("pause", deadline); !held)
    return std::unexpected(held.error());
  return book_unless_closed(
      "pause", {.kind = Hold::Kind::kPause, .peer = peer, .connection = 0, .since = HoldClock::now(), .until = {}});
}

void Holds::take_back(HoldId pause) noexcept {
  {
    const std::lock_guard guard(mutex_);
    if (holds_.erase(pause) == 0)
      return;
  }
  target_.release();
}

std::expected<void, Error> Holds::resume() {
  {
    const std::lock_guard guard(mutex_);
    if (auto open = refuse_if_closed("resume"); !open)
      return open;
    const auto pause = std::find_if(holds_.rbegin(), holds_.rend(),
                                    [](const auto& entry) { return entry.second.kind == Hold::Kind::kPause; });
    if (pause == holds_.rend()) {
      const auto lease =
          std::ranges::find_if(holds_, [](const auto& entry) { return entry.second.kind == Hold::Kind::kLease; });
      std::string reason = "not paused";
      if (lease != holds_.end())
        reason += "; a lease of pid " + std::to_string(lease->second.peer.pid) + " holds it";
      return std::unexpected(Error{"resume", "", reason, Status::kRefused});
    }
    holds_.erase(std::next(pause).base());
  }
  target_.release();
  return {};
}

std::expected<HoldId, Error> Holds::lease(ConnectionId connection, Peer peer, HoldClock::time_point deadline,
                                          std::optional<std::chrono::milliseconds> max) {
  {
    const std::lock_guard guard(mutex_);
    if (auto open = refuse_if_closed("hold"); !open)
      return std::unexpected(std::move(open.error()));
    const auto own = std::ranges::count_if(
        holds_, [connection](const auto& entry) { return entry.second.connection == connection; });
    if (size_t(own) >= kMaxLeasesOfConnection)
      return std::unexpected(Error{"hold", "", "this connection has too many leases", Status::kRefused});
    if (max && !watcher_.joinable()) {
      try {
        watcher_ = std::thread([this] { watch_deadlines(); });
      } catch (const std::system_error& error) { // no lease with a deadline that nobody would keep
        return std::unexpected(Error{"hold", "", error.what(), Status::kBusy});
      }
    }
  }
  if (auto held = target_.acquire("hold", deadline); !held)
    return std::unexpected(held.error());
  const HoldClock::time_point now = HoldClock::now();
  Hold hold{.kind = Hold::Kind::kLease, .peer = peer, .connection = connection, .since = now, .until = {}};
  if (max)
    hold.until = now + *max;
  auto id = book_unless_closed("hold", hold);
  if (id && max)
    changed_.notify_all();
  return id;
}

std::optional<std::expected<void, Error>> Holds::end_lease(ConnectionId connection, HoldId lease) {
  std::expected<void, Error> done;
  {
    const std::lock_guard guard(mutex_);
    const auto found = holds_.find(lease);
    if (found == holds_.end() || found->second.connection != connection || found->second.kind == Hold::Kind::kPause)
      return std::nullopt;
    const bool expired = found->second.kind == Hold::Kind::kExpiredLease;
    holds_.erase(found);
    if (expired)
      return std::unexpected(Error{"hold", "", "time was up", Status::kBusy});
    done = refuse_if_closed("hold");
  }
  target_.release();
  return done;
}

void Holds::connection_ended(ConnectionId connection) noexcept {
  size_t in_force = 0;
  {
    const std::lock_guard guard(mutex_);
    std::erase_if(holds_, [&](const auto& entry) {
      if (entry.second.connection != connection || entry.second.kind == Hold::Kind::kPause)
        return false;
      in_force += entry.second.kind == Hold::Kind::kLease ? 1 : 0;
      return true;
    });
  }
  for (; in_force > 0; --in_force)
    target_.release();
}

std::vector<Hold> Holds::list() const {
  const std::lock_guard guard(mutex_);
  std::vector<Hold> list;
  for (const auto& [id, hold] : holds_)
    if (hold.kind != Hold::Kind::kExpiredLease)
      list.push_back(hold);
  return list;
}

void Holds::watch_deadlines() noexcept {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    const HoldClock::time_point now = HoldClock::now();
    std::optional<HoldClock::time_point> next;
    size_t expired = 0;
    for (auto& [id, hold] : holds_) {
      if (hold.kind != Hold::Kind::kLease || !hold.until)
        continue;
      if (*hold.until <= now) {
        hold.kind = Hold::Kind::kExpiredLease;
        ++expired;
      } else {
        next = std::min(next.value_or(*hold.until), *hold.until);
      }
    }
    if (expired > 0) {
      lock.unlock();
      for (; expired > 0; --expired)
        target_.release();
      lock.lock();
      continue; // the book may have changed meanwhile
    }
    if (next)
      changed_.wait_until(lock, *next);
    else
      changed_.wait(lock);
  }
}

} // namespace stopvisor::vmm
