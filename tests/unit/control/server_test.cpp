// SPDX-License-Identifier: Apache-2.0
// The server and the name of its socket, with a handler of the test's own behind it.
#include "vmm/control/server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <set>
#include <thread>

#include "tools/client/client.h"
#include "vmm/control/socket_place.h"

namespace stopvisor::vmm {
namespace {

// Answers with what it was asked; "/block" waits until the test lets it go, "/throw" throws.
class EchoHandler final : public ApiHandler {
public:
  ApiReply serve(const ApiRequest& request) override {
    if (request.path == "/throw")
      throw std::runtime_error("thrown");
    if (request.path == "/block")
      block();
    const std::lock_guard guard(mutex_);
    open_.insert(request.connection);
    ApiReply reply;
    reply.body = std::string(request.method) + " " + std::string(request.path) + " " + std::string(request.body);
    reply.undo = [this] {
      const std::lock_guard guard_of_undo(mutex_);
      ++undone_;
      changed_.notify_all();
    };
    return reply;
  }
  void connection_ended(ConnectionId connection) noexcept override {
    const std::lock_guard guard(mutex_);
    open_.erase(connection);
    changed_.notify_all();
  }
  void wait_until_blocked() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return blocked_; });
  }
  void let_go() {
    const std::lock_guard guard(mutex_);
    goes_ = true;
    changed_.notify_all();
  }
  void wait_until_none_is_open() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return open_.empty(); });
  }
  void wait_until_undone() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return undone_ == 1; });
  }

private:
  void block() {
    std::unique_lock lock(mutex_);
    blocked_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return goes_; });
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<ConnectionId> open_;
  bool blocked_ = false;
  bool goes_ = false;
  int undone_ = 0;
};

// A socket directory of the test's own.
struct ControlTest : testing::Test {
  ControlTest() {
    std::string pattern = "/tmp/svXXXXXX";
    runtime = ::mkdtemp(pattern.data());
    ::setenv("XDG_RUNTIME_DIR", runtime.c_str(), 1); // NOLINT(concurrency-mt-unsafe): no other thread yet
  }
  ~ControlTest() override { std::filesystem::remove_all(runtime); }
  std::string runtime;
};

struct ServerTest : ControlTest {
  ServerTest() {
    auto claimed = ControlPlace::claim("vm1");
    EXPECT_TRUE(claimed) << claimed.error().message();
    place.emplace(std::move(*claimed));
    auto listening = place->listen();
    EXPECT_TRUE(listening) << listening.error().message();
    auto started = ControlServer::start(std::move(*listening), handler);
    EXPECT_TRUE(started);
    server = std::move(*started);
  }
  tools::Client client() {
    auto connected = tools::Client::connect("test", "vm1");
    EXPECT_TRUE(connected) << connected.error().message();
    return std::move(*connected);
  }
  EchoHandler handler;
  std::optional<ControlPlace> place;
  std::unique_ptr<ControlServer> server;
};

TEST_F(ServerTest, AnswersRequestsOfOneConnectionInOrder) {
  auto one = client();
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(one.request("POST", "/x", std::to_string(i)), "POST /x " + std::to_string(i));
}

TEST_F(ServerTest, TakesBodiesAsLargeAsTheLimit) {
  auto one = client();
  const std::string body(5 << 20, 'x');
  EXPECT_EQ(one.request("POST", "/x", body), "POST /x " + body);
}

TEST_F(ServerTest, TurnsAnExceptionIntoAnError) {
  auto one = client();
  const auto answer = one.request("POST", "/throw");
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().reason, "thrown");
  EXPECT_TRUE(one.request("GET", "/x"));
}

TEST_F(ServerTest, TellsTheHandlerWhenAConnectionEnds) {
  {
    EXPECT_TRUE(client().request("GET", "/x"));
  }
  handler.wait_until_none_is_open();
}

TEST_F(ServerTest, UndoesWhatAClientThatIsGoneWasNotToldOf) {
  {
    auto one = client();
    const std::string request = "POST /block HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
    ASSERT_EQ(::send(one.fd(), request.data(), request.size(), 0), ssize_t(request.size()));
    handler.wait_until_blocked();
  }
  handler.let_go();
  handler.wait_until_undone();
}

TEST_F(ServerTest, StopsWhileClientsIdleAndHang) {
  auto idle = client();
  EXPECT_TRUE(idle.request("GET", "/x"));
  auto half = client();
  ASSERT_EQ(::send(half.fd(), "POST", 4, 0), 4);
  server->stop();
  handler.wait_until_none_is_open();
  EXPECT_FALSE(idle.request("GET", "/x"));
}

TEST_F(ServerTest, AnswersTheRequestInProgressBeforeItStops) {
  std::expected<std::string, Error> answer;
  std::thread asking([&, one = client()]() mutable { answer = one.request("GET", "/block"); });
  handler.wait_until_blocked();
  std::thread stopping([&] { server->stop(); });
  handler.let_go();
  stopping.join();
  asking.join();
  EXPECT_EQ(answer, "GET /block ");
}

TEST_F(ServerTest, StopsThoughAClientDoesNotReadItsAnswer) {
  auto one = client();
  const std::string body(8 << 20, 'x'); // more than the socket buffers: the answer cannot be written
  const std::string request =
      "POST /x HTTP/1.1\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  size_t sent = 0;
  while (sent < request.size()) {
    const ssize_t more = ::send(one.fd(), request.data() + sent, request.size() - sent, 0);
    ASSERT_GT(more, 0);
    sent += size_t(more);
  }
  char first = 0; // its answer has begun
  ASSERT_EQ(::recv(one.fd(), &first, 1, 0), 1);
  server->stop();
}

TEST_F(ControlTest, NameIsRefusedWhileItIsClaimedAndFreeAfter) {
  {
    const auto place = ControlPlace::claim("vm1");
    ASSERT_TRUE(place);
    const auto second = ControlPlace::claim("vm1");
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().status, Status::kRefused);
    EXPECT_NE(second.error().reason.find("pid " + std::to_string(::getpid())), std::string::npos);
    EXPECT_EQ(running_vms()->size(), 1U);
  }
  EXPECT_TRUE(running_vms()->empty());
  EXPECT_TRUE(std::filesystem::is_empty(runtime + "/stopvisor"));
  EXPECT_TRUE(ControlPlace::claim("vm1"));
}

TEST_F(ControlTest, GeneratedNameIsTheFirstFreeOne) {
  const auto first = ControlPlace::claim("vm1");
  const auto third = ControlPlace::claim("vm3");
  EXPECT_EQ(ControlPlace::claim_generated()->name(), "vm2");
}

TEST_F(ControlTest, OddNamesAreRefused) {
  for (const char* name : {"", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "\xc3\xa4"})
    EXPECT_EQ(check_vm_name(name).error().status, Status::kUsage) << name;
  EXPECT_FALSE(check_vm_name(std::string(65, 'a')));
  EXPECT_TRUE(check_vm_name(std::string(64, 'a')));
  EXPECT_TRUE(check_vm_name("A-z_0.9"));
}

TEST_F(ControlTest, WhatDeadVmsLeftIsRemovedAndOtherFilesAreNot) {
  ASSERT_TRUE(SocketDirectory::open(true));
  const std::string directory = runtime + "/stopvisor/";
  for (const char* file : {"dead.sock", "dead.lock", "half.sock", "other.txt", ".hidden.sock"})
    ASSERT_TRUE(UniqueFd(::open((directory + file).c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)));
  EXPECT_TRUE(running_vms()->empty());
  std::set<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    left.insert(entry.path().filename());
  EXPECT_EQ(left, (std::set<std::string>{"other.txt", ".hidden.sock"}));
}

} // namespace
} // namespace stopvisor::vmm
