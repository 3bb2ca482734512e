// SPDX-License-Identifier: Apache-2.0
// Where a migration goes to or comes from, as users write it: unix:PATH, tcp://HOST:PORT, exec:COMMAND, fd:N,
// stdio:
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

#include "vmm/error.h"

namespace stopvisor::migrate {

enum class AddressKind : uint8_t {
  kUnix,  // a stream socket in the file system
  kTcp,   // tcp://HOST:PORT, tcp://[V6]:PORT
  kExec,  // a shell command whose stdin and stdout are the link; the source's alone
  kFd,    // a descriptor that was inherited: a connected stream socket, or a listening one (destination)
  kStdio, // our own stdin and stdout; the destination's alone
};

struct Address {
  AddressKind kind = AddressKind::kUnix;
  std::string path;    // kUnix
  std::string host;    // kTcp, without brackets
  uint16_t port = 0;   // kTcp; 0: any free one, for who listens
  std::string command; // kExec
  int fd = -1;         // kFd
  std::string text;    // as the user wrote it, for messages
};

// Who asks: some addresses are for one side alone.
enum class Side : uint8_t { kSource, kDestination };

// CONTEXT: any thread; does not block, looks nothing up. RETURNS: kUsage, naming what is wrong with `text`.
[[nodiscard]] std::expected<Address, vmm::Error> parse_address(std::string_view operation, std::string_view text,
                                                               Side side);
// The same, with a path that is relative to this process's folder made absolute: for a process in another folder.
[[nodiscard]] std::expected<Address, vmm::Error> parse_address_here(std::string_view operation,
                                                                    std::string_view text, Side side);

} // namespace stopvisor::migrate
