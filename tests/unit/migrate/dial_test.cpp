// SPDX-License-Identifier: Apache-2.0
// Callers and those who are called at an address: unix sockets and TCP.
#include <netinet/in.h>
#include <sys/stat.h>

#include <fstream>
#include <thread>

#include "tests/unit/migrate/dials.h"
#include "tools/migrate/sockets.h"

namespace stopvisor::migrate {
namespace {

using namespace testing;
using std::chrono::milliseconds;

TEST(Dial, UnixSocketIsOursAloneAndGoesWithItsListener) {
  const Folder folder;
  const std::string path = folder.file("in.sock");
  {
    auto listener = listen("unix:" + path);
    ASSERT_TRUE(listener) << listener.error().message();
    EXPECT_TRUE((*listener)->takes_many());
    EXPECT_EQ((*listener)->place(), "unix:" + path);
    struct stat about{};
    ASSERT_EQ(::lstat(path.c_str(), &about), 0);
    EXPECT_EQ(about.st_mode & 0777, 0600U);
    expect_talk(**listener, "unix:" + path);
    expect_talk(**listener, "unix:" + path);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(Dial, UnixSocketThatSomebodyListensAtIsBusy) {
  const Folder folder;
  const std::string place = "unix:" + folder.file("in.sock");
  auto first = listen(place);
  ASSERT_TRUE(first);
  const auto second = listen(place);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().status, vmm::Status::kBusy);
  EXPECT_EQ(second.error().reason, "somebody else listens there");
  // Who looked was a caller that hung up; the next one is heard as ever.
  auto looked = (*first)->accept({}, kLong);
  ASSERT_TRUE(looked && *looked);
  EXPECT_EQ(read(**looked, 1), "run: " + place + ": hung up");
  expect_talk(**first, place);
}

TEST(Dial, UnixSocketThatIsStaleIsReplaced) {
  const Folder folder;
  const std::string path = folder.file("in.sock");
  {
    const vmm::UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const SocketAddress place = unix_address(path);
    ASSERT_EQ(::bind(dead.get(), place.get(), place.size), 0);
  }
  const auto nobody = call("unix:" + path);
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().status, vmm::Status::kBusy);
  EXPECT_EQ(nobody.error().reason, "nobody listens there");
  auto listener = listen("unix:" + path);
  ASSERT_TRUE(listener) << listener.error().message();
  expect_talk(**listener, "unix:" + path);
}

TEST(Dial, UnixSocketTakesNoOtherFilesPlace) {
  const Folder folder;
  const std::string path = folder.file("precious");
  std::ofstream(path) << "data";
  const auto listener = listen("unix:" + path);
  ASSERT_FALSE(listener);
  EXPECT_EQ(listener.error().status, vmm::Status::kUsage);
  std::filesystem::create_symlink(folder.file("nowhere"), folder.file("link"));
  EXPECT_FALSE(listen("unix:" + folder.file("link")));
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST(Dial, UnixSocketThatIsAnothersIsNotRemoved) {
  const Folder folder;
  const std::string path = folder.file("in.sock");
  auto first = listen("unix:" + path);
  ASSERT_TRUE(first);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  auto second = listen("unix:" + path);
  ASSERT_TRUE(second);
  first->reset();
  expect_talk(**second, "unix:" + path);
}

TEST(Dial, NobodyThereIsBusy) {
  const Folder folder;
  const auto nobody = call("unix:" + folder.file("none"));
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().message(), "migrate: unix:" + folder.file("none") + ": nobody listens there");
  EXPECT_EQ(nobody.error().status, vmm::Status::kBusy);
  // A port that nobody has: bound, and not listened at.
  const vmm::UniqueFd bound(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in place{};
  place.sin_family = AF_INET;
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof place;
  ASSERT_EQ(::bind(bound.get(), reinterpret_cast<sockaddr*>(&place), size), 0);
  ASSERT_EQ(::getsockname(bound.get(), reinterpret_cast<sockaddr*>(&place), &size), 0);
  const auto closed = call("tcp://127.0.0.1:" + std::to_string(ntohs(place.sin_port)));
  ASSERT_FALSE(closed);
  EXPECT_EQ(closed.error().status, vmm::Status::kBusy);
}

TEST(Dial, TcpOnTheLoopbackTakesAnyFreePort) {
  auto listener = listen("tcp://127.0.0.1:0");
  ASSERT_TRUE(listener) << listener.error().message();
  EXPECT_TRUE((*listener)->place().starts_with("tcp://127.0.0.1:"));
  EXPECT_FALSE((*listener)->place().ends_with(":0"));
  expect_talk(**listener, (*listener)->place());
  const auto second = listen((*listener)->place());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().status, vmm::Status::kBusy);
}

TEST(Dial, TcpByNameFindsTheListener) {
  auto listener = listen("tcp://localhost:0");
  if (!listener)
    GTEST_SKIP() << "skipped: this host does not know localhost: " << listener.error().message();
  const std::string place = (*listener)->place();
  expect_talk(**listener, "tcp://localhost" + place.substr(place.rfind(':')));
}

TEST(Dial, TcpOnTheLoopbackOfIpv6) {
  auto listener = listen("tcp://[::1]:0");
  if (!listener)
    GTEST_SKIP() << "skipped: no IPv6 here: " << listener.error().message();
  EXPECT_TRUE((*listener)->place().starts_with("tcp://[::1]:"));
  expect_talk(**listener, (*listener)->place());
}

TEST(Dial, TcpCarriesMuch) {
  auto listener = listen("tcp://127.0.0.1:0");
  ASSERT_TRUE(listener);
  auto caller = call((*listener)->place());
  ASSERT_TRUE(caller);
  auto called = (*listener)->accept({}, kLong);
  ASSERT_TRUE(called && *called);
  const Bytes much = pattern(16 << 20);
  std::thread writes([&] { EXPECT_TRUE(write(**caller, much)); });
  Bytes came(much.size());
  EXPECT_TRUE((*called)->read(came));
  writes.join();
  EXPECT_EQ(came, much);
}

TEST(Dial, TcpToAnotherHostIsRefusedOnBothSides) {
  for (const char* const place :
       {"tcp://192.0.2.1:4444", "tcp://[2001:db8::1]:4444", "tcp://[::ffff:192.0.2.1]:4444"}) {
    const auto caller = call(place);
    ASSERT_FALSE(caller);
    EXPECT_EQ(caller.error().status, vmm::Status::kUsage);
    EXPECT_NE(caller.error().reason.find("--insecure"), std::string::npos);
    EXPECT_NE(caller.error().reason.find("exec:ssh"), std::string::npos);
  }
  for (const char* const place : {"tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:0"}) {
    const auto listener = listen(place);
    ASSERT_FALSE(listener);
    EXPECT_EQ(listener.error().status, vmm::Status::kUsage);
    EXPECT_NE(listener.error().reason.find("--insecure"), std::string::npos);
  }
  auto open = listen("tcp://0.0.0.0:0", true);
  ASSERT_TRUE(open) << open.error().message();
  expect_talk(**open, "tcp://127.0.0.1" + (*open)->place().substr((*open)->place().rfind(':')));
}

TEST(Dial, AHostThatIsNotKnownIsNamed) {
  const auto caller = call("tcp://no-such-host.invalid:4444");
  ASSERT_FALSE(caller);
  EXPECT_NE(caller.error().reason.find("no-such-host.invalid is not known"), std::string::npos)
      << caller.error().reason;
}

TEST(Dial, ACancelledCallIsOver) {
  std::stop_source stop;
  stop.request_stop();
  const auto caller = call("unix:/nowhere", false, stop.get_token());
  ASSERT_FALSE(caller);
  EXPECT_EQ(caller.error().reason, "was cancelled");
}

TEST(Dial, AcceptEndsWithItsLimitAndWhenItIsStopped) {
  auto listener = listen("tcp://127.0.0.1:0");
  ASSERT_TRUE(listener);
  auto nobody = (*listener)->accept({}, milliseconds(1));
  ASSERT_TRUE(nobody);
  EXPECT_EQ(*nobody, nullptr);
  std::stop_source stop;
  std::thread asks([&] { stop.request_stop(); });
  nobody = (*listener)->accept(stop.get_token(), milliseconds::max());
  asks.join();
  ASSERT_TRUE(nobody);
  EXPECT_EQ(*nobody, nullptr);
}

TEST(Dial, AHalfOpenPeerIsGivenUp) {
  auto listener = listen("tcp://127.0.0.1:0");
  ASSERT_TRUE(listener);
  auto caller = call((*listener)->place()); // the kernel has answered, nobody ever accepts
  ASSERT_TRUE(caller);
  (*caller)->set_patience(milliseconds(20));
  EXPECT_NE(read(**caller, 1).find("said nothing for 20 ms"), std::string::npos);
}

} // namespace
} // namespace stopvisor::migrate
