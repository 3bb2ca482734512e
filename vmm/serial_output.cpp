// SPDX-License-Identifier: Apache-2.0
#include "vmm/serial_output.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace stopvisor::vmm {
namespace {

constexpr const char* kOperation = "serial output";
// PIPE_BUF: a pipe that polls writable takes this much without blocking.
constexpr size_t kChunkBytes = 4096;

bool is_socket(int fd) {
  struct stat status{};
  return ::fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
}

bool is_regular(int fd) {
  struct stat status{};
  return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

} // namespace

std::string note_of_dropped(uint64_t bytes) {
  return "\r\n[stopvisor: " + std::to_string(bytes) + " bytes of output dropped]\r\n";
}

// O_NONBLOCK belongs to the open file and so to everybody who shares it (the shell, on a terminal): terminals and
// pipes are opened anew to be made nonblocking.
UniqueFd own_output(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) == 0 && (S_ISFIFO(status.st_mode) || ::isatty(fd) == 1)) {
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    UniqueFd opened(::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
    if (opened)
      return opened;
  }
  return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

std::expected<std::unique_ptr<SerialOutput>, Error> SerialOutput::to_file(const std::string& path) {
  UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0666));
  if (!file)
    return std::unexpected(system_error(kOperation, path, errno));
  auto output = start(std::move(file));
  if (output)
    (*output)->to_be_emptied_ = is_regular((*output)->target_.get()); // nothing is put yet: the thread sleeps
  return output;
}

void SerialOutput::empty_file() noexcept {
  {
    const std::lock_guard guard(lock_);
    if (!std::exchange(to_be_emptied_, false))
      return;
  }
  if (::ftruncate(target_.get(), 0) != 0)
    note_failure(errno, 0);
}

std::expected<std::unique_ptr<SerialOutput>, Error> SerialOutput::to_fd(int fd) {
  UniqueFd target = own_output(fd);
  if (!target)
    return std::unexpected(system_error(kOperation, "descriptor " + std::to_string(fd), errno));
  return start(std::move(target));
}

std::expected<std::unique_ptr<SerialOutput>, Error> SerialOutput::start(UniqueFd target) {
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake)
    return std::unexpected(system_error(kOperation, "eventfd", errno));
  std::unique_ptr<SerialOutput> output(new SerialOutput(std::move(target), std::move(wake)));
  try {
    output->thread_ = std::thread([raw = output.get()] { raw->run(); });
  } catch (const std::system_error& error) {
    return std::unexpected(system_error(kOperation, "thread", error.code().value()));
  }
  return output;
}

SerialOutput::SerialOutput(UniqueFd target, UniqueFd wake)
    : target_(std::move(target)), wake_(std::move(wake)), is_socket_(is_socket(target_.get())),
      ring_(kBufferBytes) {}

SerialOutput::~SerialOutput() {
  if (!thread_.joinable())
    return;
  {
    const std::lock_guard guard(lock_);
    end_ = Clock::now() + kDrainLimit;
  }
  filled_.notify_one();
  const uint64_t one = 1;
  // Cannot fail: the counter is 0 and the descriptor ours.
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
  thread_.join();
}

void SerialOutput::put(std::byte byte) noexcept {
  bool was_empty = false;
  {
    const std::lock_guard guard(lock_);
    was_empty = count_ == 0;
    if (count_ == ring_.size()) {
      head_ = (head_ + 1) % ring_.size();
      --count_;
      ++dropped_;
      ++dropped_unnoted_;
    }
    ring_[(head_ + count_) % ring_.size()] = byte;
    ++count_;
  }
  if (was_empty)
    filled_.notify_one();
}

uint64_t SerialOutput::dropped_bytes() const noexcept {
  const std::lock_guard guard(lock_);
  return dropped_;
}

std::optional<Error> SerialOutput::failure() const {
  const std::lock_guard guard(lock_);
  if (failure_ == 0)
    return std::nullopt;
  return system_error(kOperation, "", failure_);
}

void SerialOutput::run() noexcept {
  // No handler of the process runs here, SIGPIPE comes back as EPIPE, and SIGTTOU as a write that goes through.
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);

  std::array<std::byte, kChunkBytes> chunk;
  while (const size_t size = take(chunk)) {
    empty_file();
    if (!write_all(std::span(chunk).first(size)))
      return;
  }
}

// Waits for bytes and moves some into `chunk`, the note of a cut before them. 0: all is written, the end.
size_t SerialOutput::take(std::span<std::byte> chunk) {
  std::unique_lock guard(lock_);
  filled_.wait(guard, [this] { return count_ != 0 || end_; });
  size_t size = 0;
  if (dropped_unnoted_ != 0) {
    const std::string note = note_of_dropped(std::exchange(dropped_unnoted_, 0));
    std::memcpy(chunk.data(), note.data(), note.size());
    size = note.size();
  }
  while (count_ != 0 && size < chunk.size()) {
    const size_t step = std::min({count_, chunk.size() - size, ring_.size() - head_});
    std::memcpy(chunk.data() + size, ring_.data() + head_, step);
    head_ = (head_ + step) % ring_.size();
    count_ -= step;
    size += step;
  }
  return size;
}

// False where the end's deadline passed before the reader took everything.
bool SerialOutput::write_all(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (!wait_writable()) {
      const std::lock_guard guard(lock_);
      dropped_ += bytes.size() + count_;
      return false;
    }
    const ssize_t written = write_some(bytes);
    if (written >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(written));
    } else if (errno != EINTR && errno != EAGAIN) {
      note_failure(errno, bytes.size());
      return true; // a full disk may have room for what comes next
    }
  }
  return true;
}

bool SerialOutput::wait_writable() {
  for (;;) {
    std::optional<Clock::time_point> end;
    {
      const std::lock_guard guard(lock_);
      end = end_;
    }
    int timeout_ms = -1;
    if (end) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*end - Clock::now());
      timeout_ms = static_cast<int>(std::max<int64_t>(left.count(), 0));
    }
    // The wake-up stays readable once it was written: it is looked at only as long as it is news.
    std::array<pollfd, 2> wait{{{target_.get(), POLLOUT, 0}, {wake_.get(), POLLIN, 0}}};
    const int ready = ::poll(wait.data(), end ? 1 : 2, timeout_ms);
    if (wait[0].revents != 0)
      return true; // also on an error: write(2) names it
    if (ready == 0)
      return false;
    if (ready < 0 && errno != EINTR)
      return true;
  }
}

ssize_t SerialOutput::write_some(std::span<const std::byte> bytes) const {
  if (is_socket_)
    return ::send(target_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  return ::write(target_.get(), bytes.data(), bytes.size());
}

void SerialOutput::note_failure(int error_number, size_t lost_bytes) {
  const std::lock_guard guard(lock_);
  dropped_ += lost_bytes;
  if (failure_ == 0)
    failure_ = error_number;
}

} // namespace stopvisor::vmm
