// SPDX-License-Identifier: Apache-2.0
// Bytes both ways: in pieces, cut, silent, and without a peer.
#include <fcntl.h>

#include <csignal>
#include <future>
#include <thread>

#include "tests/unit/migrate/links.h"

namespace stopvisor::migrate {
namespace {

using namespace testing;
using std::chrono::milliseconds;

constexpr size_t kMuch = 8 << 20; // more than any socket holds
constexpr milliseconds kShort{30};

TEST(Link, CarriesPartsInOrderBothWays) {
  const Pair pair;
  const Bytes there = pattern(kMuch, 1);
  const Bytes back = pattern(kMuch, 2);
  const auto send = [](Link& link, const Bytes& bytes) {
    std::vector<iovec> parts; // some empty, more than a call takes
    for (size_t at = 0; at < bytes.size(); at += kMuch / 2048) {
      parts.push_back({const_cast<std::byte*>(bytes.data()) + at, kMuch / 2048});
      parts.push_back({nullptr, 0});
    }
    return link.write(parts).has_value();
  };
  std::thread writes([&] { EXPECT_TRUE(send(*pair.one, there)); });
  std::thread writes_back([&] { EXPECT_TRUE(send(*pair.other, back)); });
  Bytes got(kMuch);
  std::thread reads([&] { EXPECT_TRUE(pair.one->read(got)); });
  Bytes came(kMuch);
  EXPECT_TRUE(pair.other->read(came));
  writes.join();
  writes_back.join();
  reads.join();
  EXPECT_EQ(came, there);
  EXPECT_EQ(got, back);
}

TEST(Link, NothingToReadOrWriteIsDone) {
  const Pair pair;
  EXPECT_TRUE(pair.one->read({}));
  EXPECT_TRUE(pair.one->write({}));
}

TEST(Link, TellsWhetherAPeerHungUpInAMessage) {
  Pair pair;
  ASSERT_TRUE(write(*pair.other, "abc"));
  pair.other.reset();
  EXPECT_EQ(read(*pair.one, 3), "abc");
  EXPECT_EQ(read(*pair.one, 1), "one: other: hung up");
  Pair again;
  ASSERT_TRUE(write(*again.other, "abc"));
  again.other.reset();
  EXPECT_EQ(read(*again.one, 4), "one: other: hung up in the middle of a message");
  Pair goes_on;
  goes_on.other.reset();
  Bytes byte(1);
  const auto rest = goes_on.one->read(byte, {.goes_on = true});
  ASSERT_FALSE(rest);
  EXPECT_EQ(rest.error().reason, "hung up in the middle of a message");
}

TEST(Link, WritingToNobodyIsAnErrorAndNoSignal) {
  Pair pair;
  pair.other.reset();
  const auto written = write(*pair.one, "x");
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().message(), "one: other: hung up");
  EXPECT_EQ(written.error().status, vmm::Status::kFailed);
}

TEST(Link, WhatAPeerSaidBeforeItHungUpIsReadAfterAWriteFailed) {
  Pair pair;
  ASSERT_TRUE(write(*pair.other, "no"));
  pair.other.reset();
  EXPECT_FALSE(write(*pair.one, "x"));
  EXPECT_EQ(read(*pair.one, 2), "no");
}

TEST(Link, AnErrorStaysTheSame) {
  Pair pair;
  pair.one->set_patience(milliseconds(1));
  EXPECT_EQ(read(*pair.one, 1), "one: other: said nothing for 1 ms");
  ASSERT_TRUE(write(*pair.other, "late"));
  EXPECT_TRUE(pair.one->readable_within(milliseconds(0)));
  EXPECT_EQ(read(*pair.one, 1), "one: other: said nothing for 1 ms");
  EXPECT_EQ(read(*pair.one, 1), "one: other: said nothing for 1 ms");
}

TEST(Link, ASilentPeerIsGivenUp) {
  const Pair pair;
  pair.one->set_patience(kShort);
  EXPECT_EQ(read(*pair.one, 1), "one: other: said nothing for 30 ms");
}

TEST(Link, APeerThatDoesNotReadIsGivenUp) {
  const Pair pair;
  pair.one->set_patience(kShort);
  const auto written = write(*pair.one, pattern(kMuch));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().reason, "read nothing for 30 ms");
}

TEST(Link, APeerThatTricklesIsGivenUpWhereAMessageHasToBeWhole) {
  const Pair pair;
  ASSERT_TRUE(write(*pair.other, "a"));
  Bytes two(2);
  const auto late = pair.one->read(two, {.goes_on = false, .until = Link::Clock::now()});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().reason, "did not finish its message in time");
}

TEST(Link, IsCutWhileAnotherThreadReads) {
  const Pair pair;
  std::promise<void> begins;
  std::thread cuts([&] {
    begins.get_future().wait();
    pair.one->cut();
  });
  begins.set_value();
  EXPECT_EQ(read(*pair.one, 1), "one: other: was cut");
  cuts.join();
  EXPECT_TRUE(pair.one->readable_within(kLong)); // so that the next read tells
  EXPECT_FALSE(write(*pair.one, "x"));
}

TEST(Link, IsCutWhileAnotherThreadWrites) {
  const Pair pair;
  std::thread cuts([&] {
    Bytes byte(1);
    EXPECT_TRUE(pair.other->read(byte)); // the write has begun
    pair.one->cut();
  });
  const auto written = write(*pair.one, pattern(kMuch));
  cuts.join();
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().reason, "was cut");
}

TEST(Link, ACutLinkSaysSoThoughMoreCouldBeRead) {
  const Pair pair;
  ASSERT_TRUE(write(*pair.other, "abc"));
  pair.one->cut();
  EXPECT_EQ(read(*pair.one, 1), "one: other: was cut");
}

TEST(Link, TellsWhetherAnythingCanBeRead) {
  Pair pair;
  EXPECT_FALSE(pair.one->readable_within(milliseconds(0)));
  EXPECT_FALSE(pair.one->readable_within(milliseconds(1)));
  ASSERT_TRUE(write(*pair.other, "x"));
  EXPECT_TRUE(pair.one->readable_within(milliseconds(0)));
  EXPECT_TRUE(pair.one->readable_within(milliseconds::max()));
  EXPECT_EQ(read(*pair.one, 1), "x");
  EXPECT_FALSE(pair.one->readable_within(milliseconds(-5)));
  pair.other.reset();
  EXPECT_TRUE(pair.one->readable_within(milliseconds(0)));
}

// A pipe each way: the process ignores SIGPIPE, as tools/stopvisor does.
struct Pipes {
  Pipes() {
    std::array<int, 2> there{};
    std::array<int, 2> back{};
    EXPECT_EQ(::pipe2(there.data(), O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(back.data(), O_CLOEXEC), 0);
    one = std::make_unique<Link>("one", "other", vmm::UniqueFd(back[0]), vmm::UniqueFd(there[1]));
    other = std::make_unique<Link>("other", "one", vmm::UniqueFd(there[0]), vmm::UniqueFd(back[1]));
  }
  std::unique_ptr<Link> one;
  std::unique_ptr<Link> other;
};

TEST(Link, GoesOverPipesAsWell) {
  ::signal(SIGPIPE, SIG_IGN);
  Pipes pipes;
  const Bytes much = pattern(kMuch);
  std::thread writes([&] { EXPECT_TRUE(write(*pipes.one, much)); });
  Bytes came(kMuch);
  EXPECT_TRUE(pipes.other->read(came));
  writes.join();
  EXPECT_EQ(came, much);
  ASSERT_TRUE(write(*pipes.other, "back"));
  EXPECT_EQ(read(*pipes.one, 4), "back");
  pipes.one->set_patience(kShort);
  EXPECT_EQ(write(*pipes.one, much).error().reason, "read nothing for 30 ms");
  pipes.one.reset();
  EXPECT_EQ(write(*pipes.other, "x").error().reason, "hung up");
}

TEST(Link, APipeWithoutAWriterIsOneThatHungUp) {
  Pipes pipes;
  pipes.other.reset();
  EXPECT_EQ(read(*pipes.one, 1), "one: other: hung up");
}

TEST(Link, OfNoDescriptorIsASystemsError) {
  Link link("one", "other", vmm::UniqueFd());
  EXPECT_EQ(read(link, 1), "one: other: Bad file descriptor");
  EXPECT_EQ(write(link, "x").error().message(), "one: other: Bad file descriptor");
}

} // namespace
} // namespace stopvisor::migrate
