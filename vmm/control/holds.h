// SPDX-License-Identifier: Apache-2.0
// Who holds the VM: pauses, which outlive the client that took them, and leases, which do not.
//
// Both are holds counted by the stop service; this is the book that says whose they are, so that a resume gives
// back a pause and never somebody's lease, and so that a lease ends by itself: with its connection, or when
// its time is up.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <expected>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "vmm/control/peer.h"
#include "vmm/error.h"

namespace stopvisor::vmm {

using HoldClock = std::chrono::steady_clock;

// What is held. CONTEXT: any thread.
class HoldTarget {
public:
  virtual ~HoldTarget() = default;
  // Takes one hold; may block until `deadline`.
  [[nodiscard]] virtual std::expected<void, Error> acquire(const char* operation,
                                                           HoldClock::time_point deadline) = 0;
  // Gives one back; does not block.
  virtual void release() noexcept = 0;
};

using HoldId = uint64_t;

struct Hold {
  enum class Kind { kPause, kLease, kExpiredLease };

  Kind kind = Kind::kPause;
  Peer peer;
  ConnectionId connection = 0; // a lease's
  HoldClock::time_point since;
  std::optional<HoldClock::time_point> until; // a lease's deadline
};

class Holds {
public:
  explicit Holds(HoldTarget& target) : target_(target) {}
  // Leaves the holds as they are: the VM has ended.
  ~Holds();
  Holds(const Holds&) = delete;
  Holds& operator=(const Holds&) = delete;

  // All of them: CONTEXT: any thread; those with a deadline block. RETURNS also what the target returns.

  // Books a hold that was taken already (a VM that was started held).
  void adopt_pause(Peer peer);
  [[nodiscard]] std::expected<HoldId, Error> pause(Peer peer, HoldClock::time_point deadline);
  // Gives that very pause back, where nobody has done so yet.
  void take_back(HoldId pause) noexcept;
  // Gives the youngest pause back. RETURNS: kRefused where there is none.
  [[nodiscard]] std::expected<void, Error> resume();

  // A lease of `connection`, ending after `max` (from the moment the VM is held) where given.
  // RETURNS: kRefused where the connection has too many.
  [[nodiscard]] std::expected<HoldId, Error> lease(ConnectionId connection, Peer peer,
                                                   HoldClock::time_point deadline,
                                                   std::optional<std::chrono::milliseconds> max);
  // RETURNS: nothing where `connection` has no such lease; kBusy in the error where its time was up before.
  [[nodiscard]] std::optional<std::expected<void, Error>> end_lease(ConnectionId connection, HoldId lease);
  // Ends all leases of `connection`.
  void connection_ended(ConnectionId connection) noexcept;

  // The VM is about to go on elsewhere: pause(), resume() and lease() are refused from now on for the reason of
  // `why` (and with its status), and clients whose leases end after it are told it too. open() takes it back. A
  // hold that is taken just now and not booked yet is given back, and refused as well: what list() has after this
  // is all there is. CONTEXT: any thread, callbacks under a stop included; they do not block.
  void close(Error why) noexcept;
  void open() noexcept;
  // For who changes the guest under no hold and no stop: RETURNS what close() was told, of `operation`, until
  // open(). CONTEXT: any thread, also in WrittenPages::write_outside(); does not block.
  [[nodiscard]] std::expected<void, Error> check_open(const char* operation) const;

  // The holds in force, oldest first.
  [[nodiscard]] std::vector<Hold> list() const;

private:
  void watch_deadlines() noexcept;
  [[nodiscard]] std::expected<HoldId, Error> book_unless_closed(const char* operation, const Hold& hold);
  [[nodiscard]] std::expected<void, Error> refuse_if_closed(const char* operation) const; // under mutex_

  HoldTarget& target_;
  mutable std::mutex mutex_; // a leaf: the target is never called while it is held
  std::condition_variable changed_;
  HoldId last_id_ = 0;           // this and the following under mutex_
  std::map<HoldId, Hold> holds_; // an expired lease stays until it is ended or its connection is
  bool ending_ = false;
  std::optional<Error> closed_; // why nobody may hold it
  std::thread watcher_;         // started by the first lease that has a deadline
};

} // namespace stopvisor::vmm
