// SPDX-License-Identifier: Apache-2.0
// Callers and those who are called: unix sockets, TCP, descriptors that were inherited, commands, our own stdio.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <thread>

#include "tests/unit/migrate/links.h"
#include "tools/migrate/sockets.h"

namespace stopvisor::migrate {
namespace {

using namespace testing;
using std::chrono::milliseconds;

Address address_of(const std::string& text, Side side) {
  auto address = parse_address("test", text, side);
  EXPECT_TRUE(address) << address.error().message();
  return address ? *address : Address{};
}
auto call(const std::string& text, bool insecure = false, const std::stop_token& stop = {}) {
  return dial("migrate", address_of(text, Side::kSource), insecure, stop);
}
auto listen(const std::string& text, bool insecure = false) {
  return Listener::open("run", address_of(text, Side::kDestination), insecure);
}

// Calls, is called, and speaks both ways.
void expect_talk(Listener& listener, const std::string& place) {
  auto caller = call(place);
  ASSERT_TRUE(caller) << caller.error().message();
  auto called = listener.accept({}, kLong);
  ASSERT_TRUE(called && *called);
  ASSERT_TRUE(write(**caller, "hello"));
  EXPECT_EQ(read(**called, 5), "hello");
  ASSERT_TRUE(write(**called, "welcome"));
  EXPECT_EQ(read(**caller, 7), "welcome");
}

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

// As whoever started us would have left it: not close-on-exec.
std::string hand_on(vmm::UniqueFd& fd) {
  EXPECT_EQ(::fcntl(fd.get(), F_SETFD, 0), 0);
  return "fd:" + std::to_string(fd.release());
}

TEST(Dial, InheritedSocketIsALink) {
  SocketPair sockets;
  const std::string one = hand_on(sockets.one);
  auto caller = call(one);
  ASSERT_TRUE(caller) << caller.error().message();
  EXPECT_EQ(::fcntl(std::stoi(one.substr(3)), F_GETFD), FD_CLOEXEC);
  auto listener = listen(hand_on(sockets.other));
  ASSERT_TRUE(listener) << listener.error().message();
  EXPECT_FALSE((*listener)->takes_many());
  ASSERT_TRUE(write(**caller, "hello"));
  auto called = (*listener)->accept({}, kLong);
  ASSERT_TRUE(called && *called);
  EXPECT_EQ(read(**called, 5), "hello");
  const auto nobody = (*listener)->accept({}, milliseconds(0));
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().reason, "there is no other caller");
}

TEST(Dial, InheritedListenerTakesMany) {
  const Folder folder;
  const SocketAddress place = unix_address(folder.file("in.sock"));
  vmm::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(fd.get(), place.get(), place.size), 0);
  ASSERT_EQ(::listen(fd.get(), 4), 0);
  const std::string number = hand_on(fd);
  const auto caller = call(number);
  EXPECT_FALSE(caller); // and the descriptor is gone with the attempt
  vmm::UniqueFd again(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const SocketAddress other = unix_address(folder.file("again.sock"));
  ASSERT_EQ(::bind(again.get(), other.get(), other.size), 0);
  ASSERT_EQ(::listen(again.get(), 4), 0);
  auto listener = listen(hand_on(again));
  ASSERT_TRUE(listener) << listener.error().message();
  EXPECT_TRUE((*listener)->takes_many());
  expect_talk(**listener, "unix:" + folder.file("again.sock"));
}

TEST(Dial, InheritedDescriptorThatIsNoLinkIsRefused) {
  const auto reason = [](vmm::UniqueFd fd, bool handed_on = true) {
    const std::string text = handed_on ? hand_on(fd) : "fd:" + std::to_string(fd.get());
    const auto caller = call(text);
    EXPECT_FALSE(caller);
    if (handed_on)
      ::close(std::stoi(text.substr(3)));
    return caller ? std::string() : caller.error().reason;
  };
  EXPECT_EQ(reason(vmm::UniqueFd(::open("/dev/null", O_RDWR))), "is no socket");
  EXPECT_EQ(reason(vmm::UniqueFd(::socket(AF_UNIX, SOCK_DGRAM, 0))), "is no stream socket");
  EXPECT_EQ(reason(vmm::UniqueFd(::socket(AF_UNIX, SOCK_STREAM, 0))),
            "is a socket that neither is connected nor listens");
  EXPECT_EQ(reason(std::move(SocketPair().one), false), "was not inherited, but opened by this program itself");
  const auto closed = call("fd:1000000");
  ASSERT_FALSE(closed);
  EXPECT_NE(closed.error().reason.find("is not open"), std::string::npos);
  // Listening for the world.
  vmm::UniqueFd world(::socket(AF_INET, SOCK_STREAM, 0));
  ASSERT_EQ(::listen(world.get(), 1), 0);
  const std::string text = hand_on(world);
  const auto listener = listen(text);
  ASSERT_FALSE(listener);
  EXPECT_NE(listener.error().reason.find("--insecure"), std::string::npos);
  EXPECT_TRUE(listen(text, true));
}

TEST(Dial, CommandEchoes) {
  auto link = call("exec:/bin/cat");
  ASSERT_TRUE(link) << link.error().message();
  const Bytes much = pattern(4 << 20);
  std::thread writes([&] { EXPECT_TRUE(write(**link, much)); });
  Bytes came(much.size());
  EXPECT_TRUE((*link)->read(came));
  writes.join();
  EXPECT_EQ(came, much);
}

TEST(Dial, CommandsStatusIsTold) {
  auto link = call("exec:exit 255");
  ASSERT_TRUE(link);
  EXPECT_EQ(read(**link, 1), "migrate: exec:exit 255: hung up (its command ended with status 255)");
  auto killed = call("exec:kill -9 $$");
  ASSERT_TRUE(killed);
  EXPECT_NE(read(**killed, 1).find("(its command was ended by signal 9)"), std::string::npos);
  auto missing = call("exec:/no/such/command 2> /dev/null");
  ASSERT_TRUE(missing);
  EXPECT_NE(read(**missing, 1).find("status 127"), std::string::npos);
}

TEST(Dial, CommandKeepsNothingOfOurs) {
  const vmm::UniqueFd ours(::open("/dev/null", O_RDWR)); // not close-on-exec, as if it had been inherited
  auto link = call("exec:ls /proc/self/fd | tr '\\n' ' '; ulimit -n > /dev/null");
  ASSERT_TRUE(link);
  std::string open;
  for (Bytes byte(1); (*link)->read(byte);)
    open += text_of(byte);
  EXPECT_EQ(open, "0 1 2 3 "); // 3: the folder that ls reads
}

TEST(Dial, CommandsGroupIsItsOwnAndEndsWithTheLink) {
  auto link = call("exec:trap '' TERM HUP; echo $$; exec sleep 1000");
  ASSERT_TRUE(link);
  std::string line;
  for (Bytes byte(1); !line.ends_with('\n') && (*link)->read(byte);)
    line += text_of(byte);
  const pid_t pid = std::stoi(line);
  EXPECT_NE(::getpgrp(), ::getpgid(pid));
  EXPECT_EQ(::getpgid(pid), pid);
  (*link)->cut();
  link->reset();
  EXPECT_EQ(::kill(pid, 0), -1);
  EXPECT_EQ(errno, ESRCH);
}

// Runs `work` in a process with these as its stdin and stdout. RETURNS: its exit status.
template <typename Work>
int in_a_process(int in, int out, const Work& work) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(in, STDIN_FILENO);
    ::dup2(out, STDOUT_FILENO);
    ::_exit(work());
  }
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

TEST(Dial, StdioIsTakenAwayFromWhoPrints) {
  SocketPair sockets;
  const auto listener_talks = [] {
    auto listener = listen("stdio:");
    if (!listener || (*listener)->takes_many())
      return 1;
    auto link = (*listener)->accept({}, kLong);
    if (!link || !*link)
      return 2;
    char byte = 0;
    if (::write(STDOUT_FILENO, "", 0) != 0 || ::read(STDIN_FILENO, &byte, 1) != 0)
      return 3;
    struct stat err{}, out{};
    if (::fstat(STDERR_FILENO, &err) != 0 || ::fstat(STDOUT_FILENO, &out) != 0 || err.st_ino != out.st_ino)
      return 4;
    return read(**link, 5) == "hello" && write(**link, "welcome") ? 0 : 5;
  };
  Link link("one", "other", std::move(sockets.one));
  ASSERT_TRUE(write(link, "hello"));
  EXPECT_EQ(in_a_process(sockets.other.get(), sockets.other.get(), listener_talks), 0);
  sockets.other.reset();
  EXPECT_EQ(read(link, 7), "welcome");
  EXPECT_EQ(read(link, 1), "one: other: hung up");
}

TEST(Dial, StdioThatIsNoStreamIsRefused) {
  const vmm::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(in_a_process(null.get(), null.get(),
                         [] {
                           const auto listener = listen("stdio:");
                           return !listener && listener.error().status == vmm::Status::kUsage ? 0 : 1;
                         }),
            0);
}

} // namespace
} // namespace stopvisor::migrate
