// SPDX-License-Identifier: Apache-2.0
// Where a migration goes to, as users write it: what is taken can be used as it stands.
#include <sys/un.h>

#include "tests/fuzz/fuzzer.h"
#include "tools/migrate/address.h"

namespace stopvisor::fuzz {
namespace {

using migrate::Address;
using migrate::AddressKind;
using migrate::Side;

// The text that means this address.
std::string written(const Address& address) {
  switch (address.kind) {
  case AddressKind::kUnix:
    return "unix:" + address.path;
  case AddressKind::kTcp: {
    const bool six = address.host.find(':') != std::string::npos;
    return "tcp://" + (six ? "[" + address.host + "]" : address.host) + ":" + std::to_string(address.port);
  }
  case AddressKind::kExec:
    return "exec:" + address.command;
  case AddressKind::kFd:
    return "fd:" + std::to_string(address.fd);
  case AddressKind::kStdio:
    return "stdio:";
  }
  return {};
}

void check(const Address& address, Side side) {
  must(address.text.find('\0') == std::string::npos, "a text that would be cut off");
  must(address.path.size() < sizeof(sockaddr_un::sun_path), "a path that is too long");
  must(address.kind != AddressKind::kExec || side == Side::kSource, "a command to be called by");
  must(address.kind != AddressKind::kStdio || side == Side::kDestination, "a source's own stdin");
  must(address.kind != AddressKind::kFd || address.fd > 2, "a descriptor that everybody has");
  must(address.kind != AddressKind::kTcp || address.port != 0 || side == Side::kDestination, "port 0 to be called");
  const auto again = migrate::parse_address("fuzz", written(address), side);
  must(again.has_value() && written(*again) == written(address), "an address that means another");
}

} // namespace

std::vector<Bytes> seeds() {
  std::vector<Bytes> all;
  for (const char* const text : {"unix:/run/x.sock", "tcp://localhost:4444", "tcp://[fe80::1%eth0]:0", "fd:12",
                                 "exec:ssh host stopvisor run --incoming stdio:", "stdio:"})
    all.push_back(bytes_of(text));
  return all;
}

void try_one(ByteSpan input) {
  for (const Side side : {Side::kSource, Side::kDestination}) {
    const auto address = migrate::parse_address("fuzz", text_of(input), side);
    if (address)
      check(*address, side);
    else
      must(address.error().status == vmm::Status::kUsage && !address.error().reason.empty(), "no reason");
  }
}

} // namespace stopvisor::fuzz
