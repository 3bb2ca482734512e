// SPDX-License-Identifier: Apache-2.0
// A link between the two sides of a migration: bytes both ways, with a limit on silence, that anybody can cut.
//
// What is behind it (a socket, a command's pipes, our own stdin and stdout) does not matter to who uses it. A peer
// that says nothing for as long as patience lasts is an error like one that hung up.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>

#include "tools/migrate/address.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::migrate {

class Link {
public:
  using Clock = std::chrono::steady_clock;
  // How long a peer may be silent, or not read, unless set_patience() says otherwise.
  static constexpr std::chrono::milliseconds kPatience{10'000};

  // Of descriptors that are ours from now on; `in` and `out` may be one socket (then `out` is empty). Pipes are
  // made non-blocking; of a socket, which somebody else may have as well, each call asks for it. `name` is the
  // peer's, for errors. SIGPIPE is not raised by a socket; who gives a pipe ignores that signal (tools/stopvisor
  // does).
  Link(std::string operation, std::string name, vmm::UniqueFd in, vmm::UniqueFd out = {});
  // Hangs up; a command's pipes are closed, and the command waited for (exec_link.cpp).
  virtual ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Of a read: whether a message has begun, so that its end here is one in the middle; and until when all of it
  // must have come, if at all: a peer that sends a byte now and then is not silent.
  struct Reading {
    bool goes_on = false;
    std::optional<Clock::time_point> until{};
  };

  // CONTEXT: one thread reads and one writes at a time; they block, at most for as long as patience without a byte,
  // a write for up to twice that: how much the peer takes is looked at once in a patience.
  // RETURNS: kFailed: "hung up", "hung up in the middle of a message", "said nothing for 10 s", "was cut", a
  // system's error. The link is of no use in this direction then, and everything after it there fails with the same
  // error: so what a peer said before it hung up can be read after a write has failed.
  // All of `to`.
  [[nodiscard]] std::expected<void, vmm::Error> read(std::span<std::byte> to, const Reading& how);
  [[nodiscard]] std::expected<void, vmm::Error> read(std::span<std::byte> to) { return read(to, Reading{}); }
  // All of the parts, in order.
  [[nodiscard]] std::expected<void, vmm::Error> write(std::span<const iovec> parts);

  // Whether a byte can be read within `limit` (0: now). The end of the stream counts as one, and so does a cut.
  // CONTEXT: as read().
  [[nodiscard]] bool readable_within(std::chrono::milliseconds limit) noexcept;

  // What is behind the link goes on without us: whoever it is, it is not ended with the link. CONTEXT: any thread.
  virtual void leave_alone() noexcept {}
  // The reads and writes to come, and those under way, fail ("was cut"); a peer at a socket sees its end now, after
  // what was written, and not when the object goes. CONTEXT: any thread.
  void cut() noexcept;
  // Of what begins after it. CONTEXT: any thread.
  void set_patience(std::chrono::milliseconds patience) noexcept;
  [[nodiscard]] std::chrono::milliseconds patience() const noexcept;
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] vmm::Error error(std::string reason) const;

protected:
  // What is known of a peer that hung up, to follow that word: " (it ended with status 255)". CONTEXT: as read()
  // and write(), both at once perhaps.
  [[nodiscard]] virtual std::string of_its_end() { return {}; }
  void hang_up() noexcept; // CONTEXT: the destructors alone
  [[nodiscard]] bool is_cut() const noexcept;
  [[nodiscard]] int cut_event() const noexcept { return cut_event_.get(); }

private:
  using Result = std::expected<void, vmm::Error>;
  [[nodiscard]] Result wait_for(int fd, short events, Clock::time_point until, const char* what_it_did_not);
  [[nodiscard]] Result wait_to_write(int fd);
  [[nodiscard]] Result read_all(std::span<std::byte> to, const Reading& how);
  [[nodiscard]] Result write_all(std::span<const iovec> parts);
  [[nodiscard]] std::unexpected<vmm::Error> gone(bool in_a_message);

  std::string operation_;
  std::string name_;
  vmm::UniqueFd in_;
  vmm::UniqueFd out_; // empty: in_ is both
  bool in_is_socket_;
  bool out_is_socket_;
  vmm::UniqueFd cut_event_;       // raised once and for ever
  std::atomic<bool> cut_ = false; // for who need not wait; seen by whoever sees the end of the sockets
  std::atomic<std::chrono::milliseconds> patience_{kPatience}; // relaxed, as above
  std::optional<vmm::Error> read_error_;                       // of the thread that reads
  std::optional<vmm::Error> write_error_;                      // of the thread that writes
};

// Calls the destination. A TCP address that is not this host's loopback is refused (kUsage, naming --insecure and
// exec:ssh) unless `insecure`. CONTEXT: any thread; blocks until it answers, patience is over, or `stop` is asked
// for. RETURNS: kFailed, naming address and reason; kBusy where nobody listens there (yet); "was cancelled".
[[nodiscard]] std::expected<std::unique_ptr<Link>, vmm::Error>
dial(std::string_view operation, const Address& address, bool insecure, const std::stop_token& stop);

// Where a destination waits to be called.
class Listener {
public:
  // Binds and listens; for fd: and stdio: it takes what is there. A socket file is made with mode 0600, a stale one
  // (nobody listens) replaced, a live one refused (kBusy), and removed by the destructor. RETURNS: kUsage as
  // dial(), kFailed.
  [[nodiscard]] static std::expected<std::unique_ptr<Listener>, vmm::Error>
  open(std::string_view operation, const Address& address, bool insecure);
  virtual ~Listener() = default;

  // The next caller. CONTEXT: one thread at a time; blocks until there is one, `limit` is over (null link), or
  // `stop` is asked for (null link). RETURNS: kFailed where none can come any more.
  [[nodiscard]] virtual std::expected<std::unique_ptr<Link>, vmm::Error>
  accept(const std::stop_token& stop, std::chrono::milliseconds limit) = 0;
  // Whether there can be more than one caller: extra streams, one who dials again.
  [[nodiscard]] virtual bool takes_many() const noexcept = 0;
  // As a source would write it; the port that was chosen in it. For messages.
  [[nodiscard]] virtual const std::string& place() const noexcept = 0;
};

} // namespace stopvisor::migrate
