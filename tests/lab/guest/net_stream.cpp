// SPDX-License-Identifier: Apache-2.0
// One TCP connection of a guest, in large pieces: busybox's nc copies a kilobyte at a time, and would measure
// itself.
//
//   net_stream source ADDRESS PORT BYTES   sends zeros
//   net_stream sink PORT                   takes one connection until its end
//   net_stream echo PORT                   the same, and sends everything back
// Ends with 0 where all went well.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

namespace {

constexpr size_t kPieceBytes = 256 << 10;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

sockaddr_in place(const char* address, const char* port) {
  sockaddr_in where{};
  where.sin_family = AF_INET;
  where.sin_port = htons(static_cast<uint16_t>(std::strtoul(port, nullptr, 10)));
  if (::inet_pton(AF_INET, address, &where.sin_addr) != 1)
    fail(address);
  return where;
}

int stream() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    fail("socket");
  return fd;
}

int connect_to(const char* address, const char* port) {
  const int fd = stream();
  const sockaddr_in where = place(address, port);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&where), sizeof where) != 0)
    fail("connect");
  return fd;
}

int accept_at(const char* port) {
  const int listener = stream();
  const int on = 1;
  (void)::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const sockaddr_in where = place("0.0.0.0", port);
  if (::bind(listener, reinterpret_cast<const sockaddr*>(&where), sizeof where) != 0 || ::listen(listener, 1) != 0)
    fail("listen");
  const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0)
    fail("accept");
  ::close(listener);
  return fd;
}

void send_all(int fd, std::span<const char> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0)
      fail("send");
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
}

void send_zeros(int fd, uint64_t bytes) {
  const std::vector<char> piece(kPieceBytes);
  for (uint64_t left = bytes; left > 0; left -= std::min<uint64_t>(left, piece.size()))
    send_all(fd, std::span(piece).first(std::min<uint64_t>(left, piece.size())));
  // The other side closes when it has taken everything.
  char rest = 0;
  if (::shutdown(fd, SHUT_WR) != 0 || ::recv(fd, &rest, 1, 0) < 0)
    fail("the end");
}

void take_all(int fd, bool send_back) {
  std::vector<char> piece(kPieceBytes);
  for (;;) {
    const ssize_t got = ::recv(fd, piece.data(), piece.size(), 0);
    if (got < 0)
      fail("recv");
    if (got == 0)
      break;
    if (send_back)
      send_all(fd, std::span(piece).first(static_cast<size_t>(got)));
  }
  ::close(fd);
}

} // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc > 1 ? argv[1] : "";
  if (what == "source" && argc == 5)
    send_zeros(connect_to(argv[2], argv[3]), std::strtoull(argv[4], nullptr, 10));
  else if ((what == "sink" || what == "echo") && argc == 3)
    take_all(accept_at(argv[2]), what == "echo");
  else
    return 2;
  return 0;
}
