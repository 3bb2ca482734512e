// SPDX-License-Identifier: Apache-2.0
// The ring behind the console, and a client's session at it.
#include "vmm/console_ring.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <string>
#include <thread>

#include "vmm/console_session.h"

namespace stopvisor::vmm {
namespace {

void put(ConsoleRing& ring, std::string_view text) {
  for (const char c : text)
    ring.put(std::byte(c));
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::unique_ptr<ConsoleRing::Reader> reader_of(ConsoleRing& ring) {
  auto reader = ConsoleRing::Reader::start(ring);
  EXPECT_TRUE(reader) << reader.error().message();
  return std::move(*reader);
}

std::string read(ConsoleRing::Reader& reader, size_t most = 4096) {
  std::vector<std::byte> to(most);
  return text_of(std::span(to).first(reader.read(to).bytes));
}

bool readable(int fd) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

// Tells in order what it was handed.
class Collector final : public ByteSink {
public:
  void put(std::byte byte) noexcept override { text.push_back(static_cast<char>(byte)); }
  std::string text;
};

TEST(ConsoleRing, ReaderGetsWhatWasBeforeItAndWhatFollows) {
  Collector next;
  ConsoleRing ring(&next);
  put(ring, "before ");
  const auto one = reader_of(ring);
  const auto other = reader_of(ring);
  EXPECT_EQ(read(*one), "before ");
  put(ring, "after");
  EXPECT_EQ(read(*one, 3), "aft");
  EXPECT_EQ(read(*one), "er");
  EXPECT_EQ(read(*other), "before after");
  EXPECT_EQ(next.text, "before after");
  EXPECT_EQ(text_of(ring.kept()), "before after");
}

TEST(ConsoleRing, KeepsTheLastBytesAndCountsWhatAReaderLost) {
  ConsoleRing ring(nullptr);
  const auto reader = reader_of(ring);
  put(ring, "ab");
  EXPECT_EQ(read(*reader, 1), "a");
  put(ring, std::string(ConsoleRing::kBytes - 1, '.') + "!"); // pushes "b" out
  std::vector<std::byte> to(ConsoleRing::kBytes);
  const ConsoleRing::Step step = reader->read(to);
  EXPECT_EQ(step.lost, 1u);
  EXPECT_EQ(step.bytes, ConsoleRing::kBytes);
  EXPECT_EQ(text_of(to).substr(0, 1), ".");
  EXPECT_EQ(text_of(to).back(), '!');
  EXPECT_EQ(reader->read(to).lost, 0u);
}

TEST(ConsoleRing, ReaderThatFoundNothingIsWokenOnce) {
  ConsoleRing ring(nullptr);
  const auto reader = reader_of(ring);
  EXPECT_EQ(read(*reader), "");
  EXPECT_FALSE(readable(reader->event_fd()));
  put(ring, "x");
  EXPECT_TRUE(readable(reader->event_fd()));
  EXPECT_EQ(read(*reader), "x");
  EXPECT_EQ(read(*reader), ""); // and waits again
  EXPECT_FALSE(readable(reader->event_fd()));
  ring.close();
  EXPECT_TRUE(readable(reader->event_fd()));
}

TEST(ConsoleRing, EndComesAfterTheLastByte) {
  ConsoleRing ring(nullptr);
  const auto reader = reader_of(ring);
  put(ring, "last");
  ring.close();
  std::array<std::byte, 2> to{};
  EXPECT_FALSE(reader->read(to).ended);
  EXPECT_FALSE(reader->read(to).ended);
  EXPECT_TRUE(reader->read(to).ended);
}

// A session on one end of a pair of sockets, in a thread of its own.
struct Served {
  Served() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    ours = UniqueFd(ends[0]);
    client = UniqueFd(ends[1]);
  }
  void serve(std::string early = {}) {
    auto session = ConsoleSession::start(ring, port);
    ASSERT_TRUE(session) << session.error().message();
    thread = std::thread([this, made = std::move(*session), early = std::move(early)] {
      made->serve(ours.get(), std::as_bytes(std::span(early)));
      ours.reset();
    });
  }
  std::string receive(size_t bytes) const {
    std::string text(bytes, 0);
    EXPECT_EQ(::recv(client.get(), text.data(), bytes, MSG_WAITALL), static_cast<ssize_t>(bytes));
    return text;
  }
  // What the guest reads, waiting until it is there: nobody else tells.
  char guest_reads() {
    std::byte status{}, data{};
    do
      port.read(5, std::span(&status, 1));
    while ((status & std::byte{1}) == std::byte{});
    port.read(0, std::span(&data, 1));
    return static_cast<char>(data);
  }
  ~Served() {
    client.reset();
    if (thread.joinable())
      thread.join();
  }
  ConsoleRing ring{nullptr};
  Serial16550 port{&ring, {}};
  UniqueFd ours, client;
  std::thread thread;
};

TEST(ConsoleSession, InputLargerThanThePortArrivesWhole) {
  Served served;
  served.serve("early ");
  std::string sent;
  for (int i = 0; i < 5000; ++i)
    sent += std::to_string(i);
  std::thread sender([&] {
    EXPECT_EQ(::send(served.client.get(), sent.data(), sent.size(), 0), static_cast<ssize_t>(sent.size()));
  });
  std::string received;
  while (received.size() < sent.size() + 6)
    received.push_back(served.guest_reads());
  sender.join();
  EXPECT_EQ(received, "early " + sent);
}

TEST(ConsoleSession, ClientThatEndsItsSendingStillGetsOutput) {
  Served served;
  served.serve();
  ASSERT_EQ(::send(served.client.get(), "k", 1, 0), 1);
  ::shutdown(served.client.get(), SHUT_WR);
  EXPECT_EQ(served.guest_reads(), 'k');
  put(served.ring, "answer");
  EXPECT_EQ(served.receive(6), "answer");
}

TEST(ConsoleSession, EndOfTheVmComesAfterItsLastWords) {
  Served served;
  served.serve();
  put(served.ring, "last words");
  served.ring.close();
  EXPECT_EQ(served.receive(10), "last words");
  char more = 0;
  EXPECT_EQ(::recv(served.client.get(), &more, 1, 0), 0);
}

TEST(ConsoleSession, TwoClientsThatWaitForRoomAreBothServed) {
  Served served;
  served.serve();
  std::array<int, 2> ends{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  UniqueFd second_end(ends[0]), second(ends[1]);
  auto session = ConsoleSession::start(served.ring, served.port);
  ASSERT_TRUE(session) << session.error().message();
  std::thread thread([&] { (*session)->serve(second_end.get(), {}); });
  const std::string one(3000, '1'), two(3000, '2');
  ASSERT_EQ(::send(served.client.get(), one.data(), one.size(), 0), 3000);
  ASSERT_EQ(::send(second.get(), two.data(), two.size(), 0), 3000);
  size_t ones = 0;
  for (size_t i = 0; i < 6000; ++i)
    ones += served.guest_reads() == '1' ? 1 : 0;
  EXPECT_EQ(ones, 3000u);
  second.reset();
  thread.join();
}

} // namespace
} // namespace stopvisor::vmm
