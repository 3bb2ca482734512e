// SPDX-License-Identifier: Apache-2.0
// Stream sockets of links: how addresses become them, and what is asked of each. For dial.cpp and the listeners.
#pragma once

#include <sys/socket.h>

#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tools/migrate/address.h"
#include "tools/migrate/link.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::migrate {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;

  [[nodiscard]] sockaddr* get() noexcept { return reinterpret_cast<sockaddr*>(&storage); }
  [[nodiscard]] const sockaddr* get() const noexcept { return reinterpret_cast<const sockaddr*>(&storage); }
  [[nodiscard]] int family() const noexcept { return storage.ss_family; }
};

// Whether what is sent there stays on this host. Anything but IP does.
[[nodiscard]] bool stays_here(const SocketAddress& address) noexcept;
// "tcp://127.0.0.1:4444", "tcp://[::1]:4444".
[[nodiscard]] std::string text_of(const SocketAddress& address);
// Of a path that parse_address() took.
[[nodiscard]] SocketAddress unix_address(const std::string& path) noexcept;

// All that a tcp:// address stands for. CONTEXT: any thread; blocks on the resolver. RETURNS: kFailed where it
// knows none; kUsage where one of them is not on the loopback and `insecure` is not said.
[[nodiscard]] std::expected<std::vector<SocketAddress>, vmm::Error> resolve(std::string_view operation,
                                                                            const Address& address, bool insecure);
[[nodiscard]] vmm::Error refuse_plain_tcp(std::string_view operation, const Address& address);

// Asks of a connected socket what is good for a link: no waiting for more to send, and a peer that vanished is
// found.
void tune(int fd) noexcept;

struct Inherited {
  vmm::UniqueFd fd;
  bool listens = false;
};
// What fd:N names, ours from now on. RETURNS: kUsage where it is not open, was opened by this program itself, is no
// stream socket, is one that neither listens nor is connected, or leads away from this host and `insecure` is not
// said.
[[nodiscard]] std::expected<Inherited, vmm::Error> take_inherited(std::string_view operation,
                                                                  const Address& address, bool insecure);

} // namespace stopvisor::migrate
