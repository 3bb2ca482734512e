// SPDX-License-Identifier: Apache-2.0
#include "vmm/console_input.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

namespace stopvisor::vmm {
namespace {

void set_event(int event_fd) noexcept {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event_fd, &one, sizeof(one)); // full: it is readable
}

void clear_event(int event_fd) noexcept {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(event_fd, &count, sizeof(count)); // nonblocking
}

} // namespace

bool ConsoleEscape::feed(std::span<const std::byte> keys, std::vector<std::byte>& to) {
  for (const std::byte key : keys) {
    if (std::exchange(after_escape_, false)) {
      if (key == std::byte{'x'} || key == std::byte{'X'})
        return true;
      if (key == kEscape)
        to.push_back(key);
    } else if (key == kEscape) {
      after_escape_ = true;
    } else {
      to.push_back(key);
    }
  }
  return false;
}

std::expected<std::unique_ptr<ConsoleInput>, Error>
ConsoleInput::start(int fd, Serial16550& port, std::function<void()> on_quit, const RawTerminal* terminal) {
  const char* const operation = "console input";
  UniqueFd source(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!source && errno != EBADF)
    return std::unexpected(system_error(operation, "", errno));
  const bool closed = !source;
  std::unique_ptr<ConsoleInput> input(new ConsoleInput(std::move(source), port, std::move(on_quit)));
  if (closed)
    return input;
  input->stop_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  input->room_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!input->stop_ || !input->room_)
    return std::unexpected(system_error(operation, "eventfd", errno));
  const int room = input->room_.get();
  input->room_listener_ = port.on_room([room] { set_event(room); });
  const int continued_fd = terminal != nullptr ? terminal->continued_fd() : -1;
  try {
    input->thread_ = std::thread([raw = input.get(), continued_fd] { raw->run(continued_fd); });
  } catch (const std::system_error& error) {
    return std::unexpected(system_error(operation, "thread", error.code().value()));
  }
  return input;
}

ConsoleInput::ConsoleInput(UniqueFd source, Serial16550& port, std::function<void()> on_quit)
    : source_fd_(std::move(source)), is_terminal_(source_fd_ && ::isatty(source_fd_.get()) == 1), port_(port),
      on_quit_(std::move(on_quit)) {}

ConsoleInput::~ConsoleInput() {
  port_.off_room(room_listener_); // none is running after this, so that room_ may be closed
  if (!thread_.joinable())
    return;
  set_event(stop_.get());
  thread_.join();
}

void ConsoleInput::run(int continued_fd) noexcept {
  // No handler of the process runs here, and reading a terminal from the background is EIO, not SIGTTIN.
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
  while (wait(continued_fd) == Step::kGoOn) {
    if (source_ == Source::kEnded && backlog_.empty())
      return;
  }
}

bool ConsoleInput::wants_keys() const {
  // A terminal is read even when nothing fits: the escape key must get through.
  return source_ == Source::kOpen && (is_terminal_ || backlog_.empty());
}

ConsoleInput::Step ConsoleInput::wait(int continued_fd) {
  enum : size_t { kStopFd, kRoomFd, kSourceFd, kContinuedFd, kFds };
  std::array<pollfd, kFds> wait{}; // poll(2) leaves out negative descriptors
  wait[kStopFd] = {stop_.get(), POLLIN, 0};
  wait[kRoomFd] = {room_.get(), POLLIN, 0};
  wait[kSourceFd] = {wants_keys() ? source_fd_.get() : -1, POLLIN, 0};
  wait[kContinuedFd] = {source_ == Source::kBackground ? continued_fd : -1, POLLIN, 0};
  if (::poll(wait.data(), wait.size(), -1) < 0)
    return errno == EINTR ? Step::kGoOn : Step::kStop;
  if (wait[kStopFd].revents != 0)
    return Step::kStop;
  if (wait[kContinuedFd].revents != 0) {
    clear_event(continued_fd);
    source_ = Source::kOpen;
  }
  if (wait[kRoomFd].revents != 0) {
    clear_event(room_.get());
    port_full_ = false;
    deliver();
  }
  if (wait[kSourceFd].revents != 0)
    return read_keys();
  return Step::kGoOn;
}

ConsoleInput::Step ConsoleInput::read_keys() {
  std::array<std::byte, 256> keys;
  const ssize_t got = ::read(source_fd_.get(), keys.data(), keys.size());
  if (got < 0 && (errno == EINTR || errno == EAGAIN))
    return Step::kGoOn;
  if (got <= 0) {
    source_ = got < 0 && errno == EIO && is_terminal_ ? Source::kBackground : Source::kEnded;
    return Step::kGoOn;
  }
  const auto read = std::span<const std::byte>(keys).first(static_cast<size_t>(got));
  if (!is_terminal_) {
    backlog_.insert(backlog_.end(), read.begin(), read.end());
  } else if (escape_.feed(read, backlog_)) {
    on_quit_();
    return Step::kStop;
  }
  deliver();
  if (backlog_.size() > kBacklogBytes)
    backlog_.resize(kBacklogBytes);
  return Step::kGoOn;
}

void ConsoleInput::deliver() {
  if (port_full_ || backlog_.empty())
    return; // the port says when there is room
  const size_t taken = port_.receive(backlog_);
  backlog_.erase(backlog_.begin(), backlog_.begin() + static_cast<ptrdiff_t>(taken));
  port_full_ = !backlog_.empty();
}

} // namespace stopvisor::vmm
