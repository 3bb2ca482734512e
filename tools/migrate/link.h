// SPDX-License-Identifier: Apache-2.0
// A link between the two sides of a migration: bytes both ways, with a limit on silence, that anybody can cut.
//
// What is behind it (a socket, a command's pipes, our own stdin and stdout) does not matter to who uses it. A peer
// that says nothing for as long as patience lasts is an error like one that hung up.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <expected>
#include <memory>
#include <span>
#include <stop_token>
#include <string>

#include "tools/migrate/address.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::migrate {

class Link {
public:
  // How long a peer may be silent, or not read, unless set_patience() says otherwise.
  static constexpr std::chrono::milliseconds kPatience{10'000};

  // Of descriptors that are ours from now on; `in` and `out` may be one socket (then `out` is empty). They are made
  // non-blocking. `name` is the peer's, for errors.
  Link(std::string operation, std::string name, vmm::UniqueFd in, vmm::UniqueFd out = {});
  // Hangs up; a command's pipes are closed, and the command waited for (exec_link.cpp).
  virtual ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // CONTEXT: one thread reads and one writes at a time; they block, at most for as long as patience without a byte.
  // RETURNS: kFailed: "hung up", "hung up in the middle of a message", "said nothing for 10 s", "was cut", a
  // system's error. The link is of no use then, and everything after it fails with the same error.
  // All of `to`.
  [[nodiscard]] std::expected<void, vmm::Error> read(std::span<std::byte> to);
  // All of the parts, in order.
  [[nodiscard]] std::expected<void, vmm::Error> write(std::span<const iovec> parts);

  // Whether a byte can be read within `limit` (0: now). The end of the stream counts as one.
  [[nodiscard]] bool readable_within(std::chrono::milliseconds limit) noexcept;

  // CONTEXT: any thread. The reads and writes to come, and those under way, fail ("was cut").
  void cut() noexcept;
  void set_patience(std::chrono::milliseconds patience) noexcept; // of what begins after it
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] vmm::Error error(std::string reason) const;

private:
  [[nodiscard]] std::expected<void, vmm::Error> wait_for(int fd, short events);

  std::string operation_;
  std::string name_;
  vmm::UniqueFd in_;
  vmm::UniqueFd out_; // empty: in_ is both
  vmm::UniqueFd cut_; // an eventfd, raised once and for ever
  std::chrono::milliseconds patience_{kPatience};
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
