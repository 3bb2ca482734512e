// SPDX-License-Identifier: Apache-2.0
#include "vmm/console_session.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace stopvisor::vmm {

std::expected<std::unique_ptr<ConsoleSession>, Error> ConsoleSession::start(ConsoleRing& ring, Serial16550& port) {
  std::unique_ptr<ConsoleSession> session(new ConsoleSession(port));
  session->room_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!session->room_)
    return std::unexpected(system_error("console", "eventfd", errno));
  auto reader = ConsoleRing::Reader::start(ring);
  if (!reader)
    return std::unexpected(reader.error());
  session->reader_ = std::move(*reader);
  session->room_listener_ = port.on_room([room = session->room_.get()] {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(room, &one, sizeof(one)); // full: it is readable
  });
  return session;
}

ConsoleSession::~ConsoleSession() {
  if (room_listener_ != 0)
    port_.off_room(room_listener_); // none is running after this, so that room_ may be closed
}

void ConsoleSession::serve(int fd, std::span<const std::byte> early) {
  backlog_.assign(early.begin(), early.end());
  deliver();
  for (;;) {
    if (!fetch_output())
      return;
    const bool sends = out_sent_ < out_.size();
    const bool receives = !input_ended_ && backlog_.size() < kBacklogBytes;
    enum : size_t { kSocketFd, kOutputFd, kRoomFd, kFds };
    std::array<pollfd, kFds> wait{}; // poll(2) leaves out negative descriptors
    wait[kSocketFd] = {fd, static_cast<short>((sends ? POLLOUT : 0) | (receives ? POLLIN : 0)), 0};
    wait[kOutputFd] = {sends || output_ended_ ? -1 : reader_->event_fd(), POLLIN, 0};
    wait[kRoomFd] = {room_.get(), POLLIN, 0};
    if (::poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR)
      return;
    if (wait[kRoomFd].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = ::read(room_.get(), &count, sizeof(count)); // nonblocking
      deliver();
    }
    if ((wait[kSocketFd].revents & POLLIN) != 0 && !receive_input(fd))
      return;
    // A half-closed connection is POLLIN with nothing to read; POLLHUP is one that is closed, also by ourselves.
    if ((wait[kSocketFd].revents & (POLLHUP | POLLERR)) != 0)
      return;
    if ((wait[kSocketFd].revents & POLLOUT) != 0 && !send_output(fd))
      return;
  }
}

bool ConsoleSession::fetch_output() {
  if (out_sent_ < out_.size())
    return true;
  std::array<std::byte, kChunkBytes> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): read() fills it
  const ConsoleRing::Step step = reader_->read(chunk);
  output_ended_ = step.ended;
  out_.clear();
  out_sent_ = 0;
  if (step.lost != 0) {
    const std::string note = note_of_dropped(step.lost);
    const auto bytes = std::as_bytes(std::span(note));
    out_.assign(bytes.begin(), bytes.end());
  }
  out_.insert(out_.end(), chunk.begin(), chunk.begin() + static_cast<ptrdiff_t>(step.bytes));
  return !output_ended_;
}

bool ConsoleSession::send_output(int fd) {
  const auto rest = std::span(out_).subspan(out_sent_);
  const ssize_t sent = ::send(fd, rest.data(), rest.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0)
    return errno == EINTR || errno == EAGAIN;
  out_sent_ += static_cast<size_t>(sent);
  return true;
}

bool ConsoleSession::receive_input(int fd) {
  std::array<std::byte, kBacklogBytes> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): recv fills it
  const size_t room = kBacklogBytes - backlog_.size();
  const ssize_t got = ::recv(fd, chunk.data(), room, MSG_DONTWAIT);
  if (got < 0)
    return errno == EINTR || errno == EAGAIN;
  input_ended_ = got == 0;
  backlog_.insert(backlog_.end(), chunk.begin(), chunk.begin() + got);
  deliver();
  return true;
}

void ConsoleSession::deliver() {
  if (backlog_.empty())
    return;
  const size_t taken = port_.receive(backlog_); // where these are not all, room_ tells when to try again
  backlog_.erase(backlog_.begin(), backlog_.begin() + static_cast<ptrdiff_t>(taken));
}

} // namespace stopvisor::vmm
