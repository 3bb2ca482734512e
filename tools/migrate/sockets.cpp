// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace stopvisor::migrate {
namespace {

constexpr int kUnixBuffer = 1 << 20; // of TCP the kernel finds the right size by itself, unless it is told one

// As std::chrono would have it, in what the socket options take.
constexpr int kIdleS = 5;
constexpr int kBetweenProbesS = 2;
constexpr int kProbes = 3;
constexpr unsigned kUnansweredMs = 20'000;

template <typename Value>
void set_option(int fd, int level, int option, Value value) noexcept {
  ::setsockopt(fd, level, option, &value, sizeof value); // a wish: a link works without it
}

int option_of(int fd, int option) noexcept {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

bool is_loopback(const in_addr& address) noexcept {
  return ntohl(address.s_addr) >> 24 == 127;
}

vmm::Error refuse(std::string_view operation, const Address& address, std::string reason) {
  return vmm::Error{std::string(operation), address.text, std::move(reason), vmm::Status::kUsage};
}

} // namespace

bool stays_here(const SocketAddress& address) noexcept {
  if (address.family() == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &address.storage, sizeof v4);
    return is_loopback(v4.sin_addr);
  }
  if (address.family() != AF_INET6)
    return true;
  sockaddr_in6 v6;
  std::memcpy(&v6, &address.storage, sizeof v6);
  if (!IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr))
    return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
  in_addr v4;
  std::memcpy(&v4, &v6.sin6_addr.s6_addr[12], sizeof v4);
  return is_loopback(v4);
}

std::string text_of(const SocketAddress& address) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (::getnameinfo(address.get(), address.size, host.data(), host.size(), port.data(), port.size(),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "tcp:?";
  const std::string name = host.data();
  return "tcp://" + (address.family() == AF_INET6 ? "[" + name + "]" : name) + ":" + port.data();
}

SocketAddress unix_address(const std::string& path) noexcept {
  sockaddr_un place{};
  place.sun_family = AF_UNIX;
  std::memcpy(place.sun_path, path.data(), std::min(path.size(), sizeof place.sun_path - 1));
  SocketAddress address;
  std::memcpy(&address.storage, &place, sizeof place);
  address.size = sizeof place;
  return address;
}

vmm::Error refuse_plain_tcp(std::string_view operation, const Address& address) {
  return refuse(
      operation, address,
      "leads to another host, and over plain TCP anybody on the way can read the guest's memory and change "
      "it; go through ssh (exec:ssh HOST stopvisor run --incoming stdio:), or say --insecure");
}

std::expected<std::vector<SocketAddress>, vmm::Error> resolve(std::string_view operation, const Address& address,
                                                              bool insecure) {
  addrinfo wish{};
  wish.ai_socktype = SOCK_STREAM;
  wish.ai_protocol = IPPROTO_TCP;
  wish.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int fault = ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &wish, &found);
  if (fault != 0)
    return std::unexpected(
        vmm::Error{std::string(operation), address.text,
                   "the host " + address.host + " is not known: " +
                       (fault == EAI_SYSTEM ? vmm::system_error("", "", errno).reason : ::gai_strerror(fault)),
                   vmm::Status::kFailed});
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, &::freeaddrinfo);
  std::vector<SocketAddress> places;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_addrlen > sizeof(sockaddr_storage))
      continue;
    SocketAddress& place = places.emplace_back();
    std::memcpy(&place.storage, entry->ai_addr, entry->ai_addrlen);
    place.size = entry->ai_addrlen;
    if (!insecure && !stays_here(place))
      return std::unexpected(refuse_plain_tcp(operation, address));
  }
  return places;
}

void tune(int fd) noexcept {
  const int domain = option_of(fd, SO_DOMAIN);
  if (domain == AF_UNIX) {
    set_option(fd, SOL_SOCKET, SO_SNDBUF, kUnixBuffer);
    return;
  }
  if (domain != AF_INET && domain != AF_INET6)
    return;
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, kIdleS);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, kBetweenProbesS);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, kProbes);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, kUnansweredMs);
}

std::expected<Inherited, vmm::Error> take_inherited(std::string_view operation, const Address& address,
                                                    bool insecure) {
  const auto wrong = [&](std::string reason) {
    return std::unexpected(refuse(operation, address, std::move(reason)));
  };
  const int flags = ::fcntl(address.fd, F_GETFD);
  if (flags < 0)
    return wrong("is not open: whoever starts the command opens it and hands it on");
  if ((flags & FD_CLOEXEC) != 0) // what was inherited cannot have it, what we open always has
    return wrong("was not inherited, but opened by this program itself");
  const int type = option_of(address.fd, SO_TYPE);
  if (type != SOCK_STREAM)
    return wrong(type < 0 ? "is no socket" : "is no stream socket");
  const bool listens = option_of(address.fd, SO_ACCEPTCONN) == 1;
  SocketAddress peer;
  const bool named = (listens ? ::getsockname(address.fd, peer.get(), &peer.size)
                              : ::getpeername(address.fd, peer.get(), &peer.size)) == 0;
  if (!named)
    return wrong("is a socket that neither is connected nor listens");
  if (!insecure && !stays_here(peer))
    return std::unexpected(refuse_plain_tcp(operation, address));
  if (::fcntl(address.fd, F_SETFD, flags | FD_CLOEXEC) != 0)
    return std::unexpected(vmm::system_error(operation, address.text, errno));
  return Inherited{vmm::UniqueFd(address.fd), listens};
}

} // namespace stopvisor::migrate
