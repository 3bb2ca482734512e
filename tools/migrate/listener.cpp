// SPDX-License-Identifier: Apache-2.0
// The places where a destination can be called: sockets of ours, one that was inherited, our own stdin and stdout.
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "tools/migrate/link.h"
#include "tools/migrate/socket_file.h"
#include "tools/migrate/sockets.h"
#include "tools/migrate/waiting.h"

namespace stopvisor::migrate {
namespace {

using Opened = std::expected<std::unique_ptr<Listener>, vmm::Error>;
using Accepted = std::expected<std::unique_ptr<Link>, vmm::Error>;
constexpr std::chrono::milliseconds kLook{100}; // whether it is called off
constexpr int kBacklog = 32;                    // all links of a migration, and some who are mistaken

// A socket that listens.
class SocketListener final : public Listener {
public:
  SocketListener(std::string_view operation, std::string place, vmm::UniqueFd fd, SocketFile file)
      : operation_(operation), place_(std::move(place)), file_(std::move(file)), fd_(std::move(fd)) {}

  Accepted accept(const std::stop_token& stop, std::chrono::milliseconds limit) override {
    const StopBell bell(stop);
    const auto until = after(limit);
    for (;;) {
      if (wait_on(fd_.get(), POLLIN, bell.fd(), until) != Waited::kReady)
        return nullptr;
      SocketAddress peer;
      vmm::UniqueFd caller(::accept4(fd_.get(), peer.get(), &peer.size, SOCK_CLOEXEC));
      if (caller) {
        tune(caller.get());
        const bool named = peer.family() == AF_INET || peer.family() == AF_INET6;
        return std::make_unique<Link>(operation_, named ? text_of(peer) : place_, std::move(caller));
      }
      if (errno == EBADF || errno == EFAULT || errno == EINVAL || errno == ENOTSOCK || errno == EOPNOTSUPP)
        return std::unexpected(vmm::system_error(operation_, place_, errno));
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) { // they may come again
        if (!sleep_until(after(kLook), stop) || std::chrono::steady_clock::now() >= until)
          return nullptr;
      }
      // Else it is the caller's: it gave up again, or its network did.
    }
  }
  [[nodiscard]] bool takes_many() const noexcept override { return true; }
  [[nodiscard]] const std::string& place() const noexcept override { return place_; }

private:
  std::string operation_;
  std::string place_;
  SocketFile file_; // of a unix socket
  vmm::UniqueFd fd_;
};

// Whoever is there already.
class OneCaller final : public Listener {
public:
  OneCaller(std::string_view operation, std::string place, std::unique_ptr<Link> caller)
      : operation_(operation), place_(std::move(place)), caller_(std::move(caller)) {}

  // It has called when it says something: until then there is no hurry.
  Accepted accept(const std::stop_token& stop, std::chrono::milliseconds limit) override {
    if (caller_ == nullptr)
      return std::unexpected(vmm::Error{operation_, place_, "there is no other caller", vmm::Status::kFailed});
    const auto until = after(limit);
    while (!stop.stop_requested() && std::chrono::steady_clock::now() < until)
      if (caller_->readable_within(kLook))
        return std::move(caller_);
    return nullptr;
  }
  [[nodiscard]] bool takes_many() const noexcept override { return false; }
  [[nodiscard]] const std::string& place() const noexcept override { return place_; }

private:
  std::string operation_;
  std::string place_;
  std::unique_ptr<Link> caller_;
};

Opened listen_unix(std::string_view operation, const Address& address) {
  auto socket = SocketFile::listen(operation, address, kBacklog);
  if (!socket)
    return std::unexpected(std::move(socket.error()));
  return std::make_unique<SocketListener>(operation, address.text, std::move(socket->fd), std::move(socket->file));
}

std::expected<vmm::UniqueFd, int> listen_at(const SocketAddress& place) {
  vmm::UniqueFd fd(::socket(place.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int yes = 1;
  if (!fd || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
      ::bind(fd.get(), place.get(), place.size) != 0 || ::listen(fd.get(), kBacklog) != 0)
    return std::unexpected(errno);
  return fd;
}

// At the first of the host's addresses that can be had: a source tries all of them.
Opened listen_tcp(std::string_view operation, const Address& address, bool insecure) {
  const auto places = resolve(operation, address, insecure);
  if (!places)
    return std::unexpected(places.error());
  int error = EADDRNOTAVAIL;
  for (const SocketAddress& place : *places) {
    auto fd = listen_at(place);
    if (!fd) {
      error = fd.error();
      continue;
    }
    SocketAddress bound;
    if (::getsockname(fd->get(), bound.get(), &bound.size) != 0)
      return std::unexpected(vmm::system_error(operation, address.text, errno));
    return std::make_unique<SocketListener>(operation, text_of(bound), std::move(*fd), SocketFile());
  }
  return std::unexpected(vmm::system_error(operation, address.text, error,
                                           error == EADDRINUSE ? vmm::Status::kBusy : vmm::Status::kFailed));
}

Opened listen_inherited(std::string_view operation, const Address& address, bool insecure) {
  auto taken = take_inherited(operation, address, insecure);
  if (!taken)
    return std::unexpected(std::move(taken.error()));
  if (!taken->listens) {
    tune(taken->fd.get());
    return std::make_unique<OneCaller>(
        operation, address.text,
        std::make_unique<Link>(std::string(operation), address.text, std::move(taken->fd)));
  }
  // Somebody else may take a caller away from under us: accept() then must not wait for the next one.
  const int flags = ::fcntl(taken->fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(taken->fd.get(), F_SETFL, flags | O_NONBLOCK) != 0)
    return std::unexpected(vmm::system_error(operation, address.text, errno));
  return std::make_unique<SocketListener>(operation, address.text, std::move(taken->fd), SocketFile());
}

// What can be a link of stdin and stdout.
bool is_stream(int fd) noexcept {
  struct stat about{};
  return ::fstat(fd, &about) == 0 && (S_ISFIFO(about.st_mode) || S_ISSOCK(about.st_mode));
}

// Takes both away from where anybody prints, or reads: stdin is empty from now on, stdout is stderr.
Opened take_stdio(std::string_view operation, const Address& address) {
  if (!is_stream(STDIN_FILENO) || !is_stream(STDOUT_FILENO))
    return std::unexpected(vmm::Error{std::string(operation), address.text,
                                      "stdin and stdout have to be a pipe or a socket, as ssh and exec: make them",
                                      vmm::Status::kUsage});
  vmm::UniqueFd in(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  vmm::UniqueFd out(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  const vmm::UniqueFd nothing(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!in || !out || !nothing || ::dup2(nothing.get(), STDIN_FILENO) < 0 ||
      (::dup2(STDERR_FILENO, STDOUT_FILENO) < 0 && ::dup2(nothing.get(), STDOUT_FILENO) < 0))
    return std::unexpected(vmm::system_error(operation, address.text, errno));
  tune(in.get());
  tune(out.get());
  return std::make_unique<OneCaller>(
      operation, address.text,
      std::make_unique<Link>(std::string(operation), address.text, std::move(in), std::move(out)));
}

} // namespace

Opened Listener::open(std::string_view operation, const Address& address, bool insecure) {
  switch (address.kind) {
  case AddressKind::kUnix:
    return listen_unix(operation, address);
  case AddressKind::kTcp:
    return listen_tcp(operation, address, insecure);
  case AddressKind::kFd:
    return listen_inherited(operation, address, insecure);
  case AddressKind::kStdio:
    return take_stdio(operation, address);
  case AddressKind::kExec:
    break;
  }
  return std::unexpected(
      vmm::Error{std::string(operation), address.text, "is for a source alone", vmm::Status::kUsage});
}

} // namespace stopvisor::migrate
