// SPDX-License-Identifier: Apache-2.0
// Links to processes of this host, without an address: descriptors that were inherited, commands, our own stdio.
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "tests/unit/migrate/dials.h"
#include "tools/migrate/sockets.h"

namespace stopvisor::migrate {
namespace {

using namespace testing;
using std::chrono::milliseconds;

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
