// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/console_link.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "vmm/serial_output.h"

namespace stopvisor::tools {
namespace {

// PIPE_BUF: a pipe that polls writable takes this much without blocking, where it could not be made nonblocking.
constexpr size_t kChunkBytes = 4096;
// Keys that wait for a guest which does not read; further ones are dropped, so that Ctrl-A x gets through. A pipe
// is not read meanwhile.
constexpr size_t kMaxKeys = 4096;

bool again(int error) {
  return error == EINTR || error == EAGAIN;
}

} // namespace

ConsoleLink::ConsoleLink(int connection, std::string_view early, int input, int output)
    : connection_(connection), input_(input), terminal_(input >= 0 && ::isatty(input) == 1),
      output_(vmm::own_output(output)), input_ended_(input < 0) {
  const auto bytes = std::as_bytes(std::span(early));
  to_user_.assign(bytes.begin(), bytes.end());
}

std::expected<ConsoleLink::End, vmm::Error> ConsoleLink::run() {
  while (!done()) {
    enum : size_t { kConnection, kInput, kOutput, kFds };
    std::array<pollfd, kFds> wait{}; // poll(2) leaves out negative descriptors
    const bool reads = to_user_.empty();
    wait[kConnection] = {hung_up_ ? -1 : connection_,
                         static_cast<short>((reads ? POLLIN : 0) | (to_guest_.empty() ? 0 : POLLOUT)), 0};
    wait[kInput] = {input_ended_ || (!terminal_ && !to_guest_.empty()) ? -1 : input_, POLLIN, 0};
    wait[kOutput] = {reads ? -1 : output_.get(), POLLOUT, 0};
    // A hang-up is reported whether asked for or not: what came before it is read first, as the output takes it.
    if (!reads && to_guest_.empty())
      wait[kConnection].fd = -1;
    if (::poll(wait.data(), wait.size(), -1) < 0)
      continue; // EINTR: a signal's handler ran, and the process goes on
    if (wait[kOutput].revents != 0) {
      const auto written = write_output();
      if (!written)
        return std::unexpected(written.error());
      if (!*written)
        return End::kQuit;
    }
    if (wait[kInput].revents != 0 && !read_keys())
      return End::kQuit;
    if ((wait[kConnection].revents & POLLOUT) != 0)
      write_connection();
    if (reads && (wait[kConnection].revents & (POLLIN | POLLHUP | POLLERR)) != 0)
      read_connection();
  }
  return End::kHungUp;
}

void ConsoleLink::read_connection() {
  std::array<std::byte, kChunkBytes> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): recv fills it
  const ssize_t got = ::recv(connection_, chunk.data(), chunk.size(), MSG_DONTWAIT);
  if (got > 0)
    to_user_.assign(chunk.begin(), chunk.begin() + got);
  else
    hung_up_ = got == 0 || !again(errno);
}

void ConsoleLink::write_connection() {
  const ssize_t sent = ::send(connection_, to_guest_.data(), to_guest_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent > 0)
    to_guest_.erase(to_guest_.begin(), to_guest_.begin() + sent);
  else if (sent < 0 && !again(errno))
    to_guest_.clear(); // it hung up; what it sent before is read yet
}

bool ConsoleLink::read_keys() {
  std::array<std::byte, kChunkBytes> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): read fills it
  const ssize_t got = ::read(input_, chunk.data(), chunk.size());
  if (got < 0 && again(errno))
    return true;
  if (got <= 0) {
    input_ended_ = true; // output goes on: the VM may have much to say to what it was sent
    return true;
  }
  const auto keys = std::span<const std::byte>(chunk).first(static_cast<size_t>(got));
  if (!terminal_)
    to_guest_.insert(to_guest_.end(), keys.begin(), keys.end());
  else if (escape_.feed(keys, to_guest_))
    return false;
  if (terminal_ && to_guest_.size() > kMaxKeys)
    to_guest_.resize(kMaxKeys);
  return true;
}

// False: its reader is gone.
std::expected<bool, vmm::Error> ConsoleLink::write_output() {
  const ssize_t written = ::write(output_.get(), to_user_.data(), to_user_.size());
  if (written < 0 && again(errno))
    return true;
  if (written < 0 && errno == EPIPE)
    return false;
  if (written < 0)
    return std::unexpected(vmm::system_error("console", "stdout", errno));
  to_user_.erase(to_user_.begin(), to_user_.begin() + written);
  return true;
}

} // namespace stopvisor::tools
