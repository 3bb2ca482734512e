// SPDX-License-Identifier: Apache-2.0
// How a source calls a destination.
#include <poll.h>

#include <cerrno>
#include <utility>

#include "tools/migrate/exec_link.h"
#include "tools/migrate/link.h"
#include "tools/migrate/sockets.h"
#include "tools/migrate/waiting.h"

namespace stopvisor::migrate {
namespace {

using Dialled = std::expected<std::unique_ptr<Link>, vmm::Error>;

struct Call {
  std::string_view operation;
  const Address& address;
  int stop; // an eventfd

  [[nodiscard]] std::unexpected<vmm::Error> failed(std::string reason,
                                                   vmm::Status status = vmm::Status::kFailed) const {
    return std::unexpected(vmm::Error{std::string(operation), address.text, std::move(reason), status});
  }
  [[nodiscard]] std::unexpected<vmm::Error> failed(int error) const {
    if (error == ECONNREFUSED || error == ENOENT)
      return failed("nobody listens there", vmm::Status::kBusy);
    if (error == EAGAIN) // of a unix socket whose queue is full
      return failed("too many are calling there already", vmm::Status::kBusy);
    return std::unexpected(vmm::system_error(operation, address.text, error));
  }
};

std::expected<vmm::UniqueFd, vmm::Error> connect(const Call& call, const SocketAddress& place) {
  vmm::UniqueFd fd(::socket(place.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd)
    return call.failed(errno);
  if (::connect(fd.get(), place.get(), place.size) == 0)
    return fd;
  if (errno != EINPROGRESS && errno != EINTR)
    return call.failed(errno);
  switch (wait_on(fd.get(), POLLOUT, call.stop, after(Link::kPatience))) {
  case Waited::kStopped:
    return call.failed("was cancelled");
  case Waited::kTimeUp:
    return call.failed("does not answer");
  case Waited::kReady:
    break;
  }
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0)
    error = errno;
  if (error != 0)
    return call.failed(error);
  return fd;
}

// Each place in turn. RETURNS: what the last one came to.
Dialled connect_any(const Call& call, const std::vector<SocketAddress>& places) {
  vmm::Error last{std::string(call.operation), call.address.text, "has no address", vmm::Status::kFailed};
  for (const SocketAddress& place : places) {
    auto fd = connect(call, place);
    if (fd) {
      tune(fd->get());
      return std::make_unique<Link>(std::string(call.operation), call.address.text, std::move(*fd));
    }
    last = std::move(fd.error());
    if (wait_on(-1, 0, call.stop, Link::Clock::now()) == Waited::kStopped)
      break;
  }
  return std::unexpected(std::move(last));
}

Dialled dial_inherited(const Call& call, bool insecure) {
  auto taken = take_inherited(call.operation, call.address, insecure);
  if (!taken)
    return std::unexpected(std::move(taken.error()));
  if (taken->listens)
    return call.failed("listens: only a destination can take it", vmm::Status::kUsage);
  tune(taken->fd.get());
  return std::make_unique<Link>(std::string(call.operation), call.address.text, std::move(taken->fd));
}

} // namespace

Dialled dial(std::string_view operation, const Address& address, bool insecure, const std::stop_token& stop) {
  const StopBell bell(stop);
  const Call call{operation, address, bell.fd()};
  if (stop.stop_requested())
    return call.failed("was cancelled");
  switch (address.kind) {
  case AddressKind::kUnix:
    return connect_any(call, {unix_address(address.path)});
  case AddressKind::kTcp: {
    const auto places = resolve(operation, address, insecure);
    if (!places)
      return std::unexpected(places.error());
    return connect_any(call, *places);
  }
  case AddressKind::kExec:
    return start_command(operation, address);
  case AddressKind::kFd:
    return dial_inherited(call, insecure);
  case AddressKind::kStdio:
    break;
  }
  return call.failed("is for a destination alone", vmm::Status::kUsage);
}

} // namespace stopvisor::migrate
