// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/channel.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace stopvisor::vmm {
namespace {

constexpr std::chrono::seconds kPatience{10}; // for the rest of something that has begun
constexpr std::chrono::seconds kDiscardTime{2};
constexpr size_t kChunkBytes = 16 << 10;
constexpr std::string_view kHeadEnd = "\r\n\r\n";

void set_timeout(int fd, int option, std::chrono::seconds time) {
  const timeval value{.tv_sec = time.count(), .tv_usec = 0};
  ::setsockopt(fd, SOL_SOCKET, option, &value, sizeof value); // cannot fail for these arguments
}

} // namespace

Channel::Channel(int fd) : fd_(fd) {
  set_timeout(fd_, SO_RCVTIMEO, kPatience);
  set_timeout(fd_, SO_SNDTIMEO, kPatience);
}

Channel::Received Channel::receive() {
  if (taken_ == in_.size()) {
    in_.clear();
    taken_ = 0;
  }
  std::array<char, kChunkBytes> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): recv fills it
  for (;;) {
    const ssize_t got = ::recv(fd_, chunk.data(), chunk.size(), 0);
    if (got > 0) {
      in_.append(chunk.data(), size_t(got));
      return Received::kBytes;
    }
    if (got < 0 && errno == EINTR)
      continue;
    return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? Received::kTimeout : Received::kEnd;
  }
}

HeadWait Channel::wait_for_head() {
  in_.erase(0, taken_);
  taken_ = 0;
  Clock::time_point begun = Clock::now();
  for (;;) {
    const bool started = !in_.empty();
    if (const size_t end = in_.find(kHeadEnd); end <= kMaxHeadBytes) { // not npos, then
      head_end_ = end;
      return std::string_view(in_).substr(0, end).find("\n\n") == std::string_view::npos ? HeadWait::kComplete
                                                                                         : HeadWait::kMalformed;
    }
    if (in_.size() > kMaxHeadBytes)
      return HeadWait::kTooLarge;
    if (in_.find("\n\n") != std::string::npos)
      return HeadWait::kMalformed;
    const Received received = receive();
    if (received == Received::kEnd)
      return HeadWait::kClosed;
    const Clock::time_point now = Clock::now();
    if (!started && !in_.empty())
      begun = now;
    if (!in_.empty() && now - begun >= kPatience)
      return HeadWait::kTooSlow;
  }
}

std::string_view Channel::head() const noexcept {
  return std::string_view(in_).substr(0, head_end_);
}

size_t Channel::read(std::span<char> to) {
  if (taken_ == in_.size() && receive() != Received::kBytes)
    return 0;
  const size_t length = std::min(to.size(), in_.size() - taken_);
  std::memcpy(to.data(), in_.data() + taken_, length);
  taken_ += length;
  return length;
}

bool Channel::read_all(std::string& to, size_t bytes) {
  const Clock::time_point begun = Clock::now();
  while (bytes > 0) {
    if (taken_ == in_.size() && receive() != Received::kBytes)
      return false;
    const size_t length = std::min(bytes, in_.size() - taken_);
    to.append(in_, taken_, length);
    taken_ += length;
    bytes -= length;
    if (Clock::now() - begun > 3 * kPatience)
      return false;
  }
  return true;
}

std::string Channel::take_rest() {
  std::string rest = in_.substr(taken_);
  taken_ = in_.size();
  return rest;
}

void Channel::discard(size_t bytes) {
  set_timeout(fd_, SO_RCVTIMEO, kDiscardTime);
  const Clock::time_point begun = Clock::now();
  std::array<char, kChunkBytes> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): read fills it
  while (bytes > 0 && Clock::now() - begun < kDiscardTime) {
    const size_t got = read(std::span(chunk).first(std::min(bytes, chunk.size())));
    if (got == 0)
      return;
    bytes -= got;
  }
}

bool Channel::flush() {
  std::string_view rest = out_;
  while (!rest.empty()) {
    const ssize_t sent = ::send(fd_, rest.data(), rest.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR)
      continue;
    if (sent <= 0) {
      out_.clear();
      return false;
    }
    rest.remove_prefix(size_t(sent));
  }
  out_.clear();
  return true;
}

} // namespace stopvisor::vmm
