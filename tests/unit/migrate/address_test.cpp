// SPDX-License-Identifier: Apache-2.0
// What users write, and what they are told where it cannot be.
#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "tools/migrate/address.h"

namespace stopvisor::migrate {
namespace {

constexpr Side kBoth[] = {Side::kSource, Side::kDestination};

Address good(std::string_view text, Side side = Side::kSource) {
  const auto address = parse_address("migrate", text, side);
  EXPECT_TRUE(address) << text << ": " << address.error().message();
  if (!address)
    return {};
  EXPECT_EQ(address->text, text);
  return *address;
}

// The reason; empty where it is taken.
std::string refusal(std::string_view text, Side side = Side::kSource) {
  const auto address = parse_address("migrate", text, side);
  if (address)
    return {};
  EXPECT_EQ(address.error().operation, "migrate");
  EXPECT_EQ(address.error().status, vmm::Status::kUsage);
  return address.error().reason;
}

bool says(const std::string& reason, std::string_view words) {
  return reason.find(words) != std::string::npos;
}

TEST(Address, UnixHasAPathThatFits) {
  for (const Side side : kBoth) {
    const Address address = good("unix:/run/a:b c.sock", side);
    EXPECT_EQ(address.kind, AddressKind::kUnix);
    EXPECT_EQ(address.path, "/run/a:b c.sock");
  }
  EXPECT_EQ(good("unix:" + std::string(107, 'p')).path.size(), 107U);
  EXPECT_TRUE(says(refusal("unix:" + std::string(108, 'p')), "108 bytes, at most 107"));
  EXPECT_TRUE(says(refusal("unix:"), "no path"));
  EXPECT_TRUE(says(refusal(std::string_view("unix:a\0b", 8)), "NUL"));
}

TEST(Address, TcpHasAHostAndAPort) {
  const Address name = good("tcp://host-1.example:65535");
  EXPECT_EQ(name.kind, AddressKind::kTcp);
  EXPECT_EQ(name.host, "host-1.example");
  EXPECT_EQ(name.port, 65535);
  EXPECT_EQ(good("tcp://127.0.0.1:1").host, "127.0.0.1");
  const Address six = good("tcp://[fe80::1%eth0]:4444");
  EXPECT_EQ(six.host, "fe80::1%eth0");
  EXPECT_EQ(six.port, 4444);
  EXPECT_EQ(good("tcp://[::1]:0", Side::kDestination).port, 0);
}

TEST(Address, TcpThatCannotBeSaysWhy) {
  EXPECT_TRUE(says(refusal("tcp:host:1"), "tcp://HOST:PORT"));
  EXPECT_TRUE(says(refusal("tcp://"), "no port"));
  EXPECT_TRUE(says(refusal("tcp://host"), "no port"));
  EXPECT_TRUE(says(refusal("tcp://host:"), "no port"));
  EXPECT_TRUE(says(refusal("tcp://:1"), "no host"));
  EXPECT_TRUE(says(refusal("tcp://::1:80"), "in brackets"));
  EXPECT_TRUE(says(refusal("tcp://[::1:80"), "not closed"));
  EXPECT_TRUE(says(refusal("tcp://[::1]"), "behind its brackets"));
  EXPECT_TRUE(says(refusal("tcp://[::1]80"), "behind its brackets"));
  EXPECT_TRUE(says(refusal("tcp://[]:80"), "no IPv6 address"));
  EXPECT_TRUE(says(refusal("tcp://[127.0.0.1]:80"), "no IPv6 address"));
  EXPECT_TRUE(says(refusal("tcp://[::1%]:80"), "no interface"));
  EXPECT_TRUE(says(refusal("tcp://[::1%a b]:80"), "no interface"));
  EXPECT_TRUE(says(refusal("tcp://a b:80"), "host that cannot be one"));
  EXPECT_TRUE(says(refusal("tcp://-x:80"), "host that cannot be one"));
  EXPECT_TRUE(says(refusal("tcp://user@host:80"), "host that cannot be one"));
  EXPECT_TRUE(says(refusal("tcp://" + std::string(254, 'h') + ":80"), "host that cannot be one"));
  for (const char* const port : {"65536", "99999", "000001", "-1", "+1", "1x", "0x10", " 1", "1/", "http"})
    EXPECT_TRUE(says(refusal(std::string("tcp://host:") + port), "0 to 65535")) << port;
  EXPECT_TRUE(says(refusal("tcp://host:0"), "only a destination"));
}

TEST(Address, ExecIsForASource) {
  const Address address = good("exec:ssh -o BatchMode=yes host 'stopvisor run --incoming stdio:'");
  EXPECT_EQ(address.kind, AddressKind::kExec);
  EXPECT_EQ(address.command, "ssh -o BatchMode=yes host 'stopvisor run --incoming stdio:'");
  EXPECT_TRUE(says(refusal("exec:cat", Side::kDestination), "takes stdio:"));
  EXPECT_TRUE(says(refusal("exec:"), "no command"));
  EXPECT_TRUE(says(refusal("exec: \t"), "no command"));
  EXPECT_TRUE(says(refusal("exec:" + std::string(40'000, 'x')), "too long"));
}

TEST(Address, ARelativePathIsThatOfOurFolder) {
  const auto here = parse_address_here("migrate", "unix:door/../in", Side::kSource);
  ASSERT_TRUE(here);
  EXPECT_EQ(here->path, (std::filesystem::current_path() / "in").string());
  EXPECT_EQ(here->text, "unix:" + here->path);
  EXPECT_EQ(parse_address_here("migrate", "unix:/run/in", Side::kSource)->text, "unix:/run/in");
  EXPECT_EQ(parse_address_here("migrate", "tcp://localhost:7", Side::kSource)->text, "tcp://localhost:7");
  EXPECT_EQ(parse_address_here("migrate", "unix:", Side::kSource).error().status, vmm::Status::kUsage);
}

TEST(Address, FdIsANumberAboveTheStandardThree) {
  for (const Side side : kBoth)
    EXPECT_EQ(good("fd:17", side).fd, 17);
  for (const char* const text : {"fd:", "fd:x", "fd:1x", "fd:-3", "fd:+3", "fd: 3", "fd:99999999999"})
    EXPECT_TRUE(says(refusal(text), "its number")) << text;
  for (const char* const text : {"fd:0", "fd:1", "fd:2"})
    EXPECT_TRUE(says(refusal(text), "stdio:")) << text;
}

TEST(Address, StdioIsForADestination) {
  EXPECT_EQ(good("stdio:", Side::kDestination).kind, AddressKind::kStdio);
  EXPECT_TRUE(says(refusal("stdio:x", Side::kDestination), "behind stdio:"));
  EXPECT_TRUE(says(refusal("stdio:"), "exec:COMMAND"));
}

TEST(Address, AnythingElseIsToldWhatThereIs) {
  for (const char* const text :
       {"", ":", "host:80", "/run/x.sock", "UNIX:/x", "http://x:1", "stdio", "unix", " unix:/x"}) {
    EXPECT_TRUE(says(refusal(text), "exec:COMMAND")) << text;
    EXPECT_TRUE(says(refusal(text, Side::kDestination), "stdio:")) << text;
  }
  const auto wrong = parse_address("migrate", std::string(5'000, 'z'), Side::kSource);
  ASSERT_FALSE(wrong);
  EXPECT_LT(wrong.error().message().size(), 500U);
}

} // namespace
} // namespace stopvisor::migrate
