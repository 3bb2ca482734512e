// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/link.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <utility>
#include <vector>

#include "tools/migrate/waiting.h"
#include "vmm/event_fd.h"

namespace stopvisor::migrate {
namespace {

using std::chrono::milliseconds;

constexpr const char* kTooLate = "did not finish its message in time";

bool is_socket(int fd) noexcept {
  int type = 0;
  socklen_t size = sizeof type;
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

// The flag is of what is open, not of the descriptor: a pipe's end is hardly ever somebody else's as well.
void do_not_block(int fd) noexcept {
  if (const int flags = ::fcntl(fd, F_GETFL); flags >= 0)
    ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

std::string text_of(milliseconds time) {
  return time.count() % 1000 == 0 ? std::to_string(time.count() / 1000) + " s"
                                  : std::to_string(time.count()) + " ms";
}

bool would_block(int error) noexcept {
  return error == EAGAIN || error == EWOULDBLOCK;
}
bool says_gone(int error) noexcept {
  return error == EPIPE || error == ECONNRESET;
}

// Takes `bytes` away from the front of `parts`.
void take_away(std::span<iovec>& parts, size_t bytes) noexcept {
  while (!parts.empty() && bytes >= parts.front().iov_len) {
    bytes -= parts.front().iov_len;
    parts = parts.subspan(1);
  }
  if (bytes > 0) {
    parts.front().iov_base = static_cast<std::byte*>(parts.front().iov_base) + bytes;
    parts.front().iov_len -= bytes;
  }
}

ssize_t send_some(int fd, bool socket, std::span<iovec> parts) noexcept {
  const size_t count = std::min(parts.size(), size_t{IOV_MAX});
  if (!socket)
    return ::writev(fd, parts.data(), static_cast<int>(count));
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = count;
  return ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// How much of what was written the peer's side has not taken yet; -1 where that cannot be known.
int untaken_by_peer(int fd, bool socket) noexcept {
  int bytes = -1;
  return ::ioctl(fd, socket ? SIOCOUTQ : FIONREAD, &bytes) == 0 ? bytes : -1;
}

} // namespace

Link::Link(std::string operation, std::string name, vmm::UniqueFd in, vmm::UniqueFd out)
    : operation_(std::move(operation)), name_(std::move(name)), in_(std::move(in)), out_(std::move(out)),
      in_is_socket_(is_socket(in_.get())), out_is_socket_(out_ ? is_socket(out_.get()) : in_is_socket_) {
  if (!in_is_socket_)
    do_not_block(in_.get());
  if (out_ && !out_is_socket_)
    do_not_block(out_.get());
  auto event = vmm::make_event(name_);
  if (event)
    cut_event_ = std::move(*event);
  else
    read_error_ = write_error_ = error(event.error().message());
}

Link::~Link() = default;

void Link::hang_up() noexcept {
  in_.reset();
  out_.reset();
}

vmm::Error Link::error(std::string reason) const {
  return vmm::Error{operation_, name_, std::move(reason), vmm::Status::kFailed};
}

// The flag stands before the sockets end: a thread that sees their end and not the event yet looks at it (gone()).
void Link::cut() noexcept {
  cut_.store(true, std::memory_order_seq_cst);
  vmm::raise_event(cut_event_.get());
  if (in_is_socket_)
    ::shutdown(in_.get(), SHUT_RDWR);
  if (out_ && out_is_socket_)
    ::shutdown(out_.get(), SHUT_RDWR);
}
bool Link::is_cut() const noexcept {
  return cut_.load(std::memory_order_acquire);
}

void Link::set_patience(milliseconds patience) noexcept {
  patience_.store(patience, std::memory_order_relaxed);
}
milliseconds Link::patience() const noexcept {
  return patience_.load(std::memory_order_relaxed);
}

std::unexpected<vmm::Error> Link::gone(bool in_a_message) {
  if (is_cut())
    return std::unexpected(error("was cut"));
  return std::unexpected(error((in_a_message ? "hung up in the middle of a message" : "hung up") + of_its_end()));
}

Link::Result Link::wait_for(int fd, short events, Clock::time_point until, const char* what_it_did_not) {
  const milliseconds limit = patience();
  const Clock::time_point silent_at = after(limit);
  switch (wait_on(fd, events, cut_event_.get(), std::min(silent_at, until))) {
  case Waited::kReady:
    return {};
  case Waited::kStopped:
    return std::unexpected(error("was cut"));
  case Waited::kTimeUp:
    break;
  }
  if (until < silent_at)
    return std::unexpected(error(kTooLate));
  return std::unexpected(error(what_it_did_not + (" for " + text_of(limit))));
}

Link::Result Link::read_all(std::span<std::byte> to, const Reading& how) {
  const size_t size = to.size();
  while (!to.empty()) {
    if (is_cut())
      return std::unexpected(error("was cut"));
    if (how.until && Clock::now() >= *how.until) // also of a peer that sends without end
      return std::unexpected(error(kTooLate));
    const ssize_t got = in_is_socket_ ? ::recv(in_.get(), to.data(), to.size(), MSG_DONTWAIT)
                                      : ::read(in_.get(), to.data(), to.size());
    if (got > 0) {
      to = to.subspan(static_cast<size_t>(got));
      continue;
    }
    if (got == 0 || says_gone(errno))
      return gone(how.goes_on || to.size() < size);
    if (errno == EINTR)
      continue;
    if (!would_block(errno))
      return std::unexpected(vmm::system_error(operation_, name_, errno));
    if (auto ready = wait_for(in_.get(), POLLIN, how.until.value_or(Clock::time_point::max()), "said nothing");
        !ready)
      return ready;
  }
  return {};
}

// A socket takes more only when a good part of what it holds is gone (a third of TCP's, three quarters of a Unix
// socket's, as their poll() has it). A peer that is slow can take longer for that than patience lasts, and is not
// one that does not read.
Link::Result Link::wait_to_write(int fd) {
  for (int untaken = untaken_by_peer(fd, out_is_socket_);;) {
    const milliseconds limit = patience();
    switch (wait_on(fd, POLLOUT, cut_event_.get(), after(limit))) {
    case Waited::kReady:
      return {};
    case Waited::kStopped:
      return std::unexpected(error("was cut"));
    case Waited::kTimeUp:
      break;
    }
    const int left = untaken_by_peer(fd, out_is_socket_); // nobody else writes meanwhile: it does not grow
    if (left < 0 || left >= untaken)
      return std::unexpected(error("read nothing for " + text_of(limit)));
    untaken = left;
  }
}

Link::Result Link::write_all(std::span<const iovec> parts) {
  std::vector<iovec> rest(parts.begin(), parts.end());
  std::span<iovec> left(rest);
  const int fd = out_ ? out_.get() : in_.get();
  take_away(left, 0);
  while (!left.empty()) {
    if (is_cut())
      return std::unexpected(error("was cut"));
    const ssize_t sent = send_some(fd, out_is_socket_, left);
    if (sent >= 0) {
      take_away(left, static_cast<size_t>(sent));
      continue;
    }
    if (says_gone(errno))
      return gone(false);
    if (errno == EINTR)
      continue;
    if (!would_block(errno))
      return std::unexpected(vmm::system_error(operation_, name_, errno));
    if (auto ready = wait_to_write(fd); !ready)
      return ready;
  }
  return {};
}

Link::Result Link::read(std::span<std::byte> to, const Reading& how) {
  if (!read_error_) {
    auto done = read_all(to, how);
    if (done)
      return done;
    read_error_ = std::move(done.error());
  }
  return std::unexpected(*read_error_);
}

Link::Result Link::write(std::span<const iovec> parts) {
  if (!write_error_) {
    auto done = write_all(parts);
    if (done)
      return done;
    write_error_ = std::move(done.error());
  }
  return std::unexpected(*write_error_);
}

bool Link::readable_within(milliseconds limit) noexcept {
  return read_error_ || wait_on(in_.get(), POLLIN, cut_event_.get(), after(limit)) != Waited::kTimeUp;
}

} // namespace stopvisor::migrate
