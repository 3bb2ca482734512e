// SPDX-License-Identifier: Apache-2.0
// Pages go from one memory to another, round by round over several links, or it is said why not.
#include <cstring>
#include <thread>

#include "tests/unit/migrate/calls.h"
#include "tools/migrate/page_receiver.h"
#include "tools/migrate/page_sender.h"

namespace stopvisor::migrate {
namespace {

using testing::CallPair;
using testing::hello_of;
using testing::Place;
using vmm::DirtyPages;
using vmm::GuestMemory;

constexpr uint64_t kMemoryBytes = 16 << 20;
constexpr uint64_t kPages = kMemoryBytes / kPageBytes;

// Both memories, and as many links as are asked for.
class PageLinks : public ::testing::Test {
protected:
  PageLinks()
      : from_(GuestMemory::create(kMemoryBytes, vmm::MemoryBacking::kAnonymous).value()),
        to_(GuestMemory::create(kMemoryBytes, vmm::MemoryBacking::kAnonymous).value()), pages_(from_.slots()) {}

  void connect(size_t links) {
    for (size_t link = 0; link < links; ++link) {
      const auto role = link == 0 ? LinkRole::kControl : LinkRole::kStream;
      CallPair pair(place_, hello_of(std::byte{1}, role, static_cast<uint16_t>(link)));
      sources_.push_back(std::move(pair.source));
      if (link == 0)
        control_ = std::move(pair.destination);
      else
        streams_.push_back(std::move(pair.destination));
    }
    receiver_ = std::make_unique<PageReceiver>("destination", to_, *control_, streams_, nullptr);
  }
  std::unique_ptr<PageSender> sender(SenderOptions options = {}) {
    std::vector<Call*> calls;
    for (const auto& call : sources_)
      calls.push_back(call.get());
    return std::make_unique<PageSender>(std::move(calls), kPages, std::move(options));
  }
  [[nodiscard]] std::byte* at(uint64_t page) const { return from_.slots().front().host + page * kPageBytes; }
  [[nodiscard]] std::byte* at_destination(uint64_t page) const {
    return to_.slots().front().host + page * kPageBytes;
  }
  // Something that zstd can do something about, and no two pages have.
  void write(uint64_t page, unsigned salt) const {
    for (size_t byte = 0; byte < kPageBytes; byte += 16) {
      std::memcpy(at(page) + byte, &page, sizeof page);
      std::memcpy(at(page) + byte + 8, &salt, sizeof salt);
    }
  }
  // Marks of a round, as the source hears of it.
  RoundMark round_done() {
    const auto frame = sources_[0]->expect(FrameKind::kRoundDone);
    EXPECT_TRUE(frame.has_value()) << frame.error().message();
    return frame ? decode_round("test", frame->payload).value() : RoundMark{};
  }
  [[nodiscard]] std::vector<LinkDigest> digests() const {
    std::vector<LinkDigest> list;
    for (const auto& call : sources_) {
      const FrameTally tally = call->voice().tally();
      list.push_back({static_cast<uint16_t>(list.size()), tally.frames, tally.digest});
    }
    return list;
  }
  void expect_same() const {
    for (uint64_t page = 0; page < kPages; ++page)
      ASSERT_EQ(std::memcmp(at(page), at_destination(page), kPageBytes), 0) << "page " << page;
  }
  static void say_round_end(Call& call, uint32_t round, uint64_t pages) {
    EXPECT_TRUE(call.voice().say(FrameKind::kRoundEnd, encode(RoundMark{round, pages})).has_value());
  }
  // All of `count` pages from `first` on as one batch. RETURNS: how many.
  uint64_t say_pages(Call& call, uint64_t first, uint64_t count) const {
    BatchWriter writer(nullptr, 0);
    for (uint64_t page = first; page < first + count; ++page)
      EXPECT_TRUE(writer.add(vmm::Gpa{page * kPageBytes}, page, at(page)));
    const auto payload = writer.finish().value();
    EXPECT_TRUE(call.voice().say(FrameKind::kPages, payload.parts, payload.flags).has_value());
    return payload.pages;
  }
  // Three rounds: all, some that were written, and one of nothing; then the state.
  void move_all(size_t links, const SenderOptions& options = {}) {
    connect(links);
    for (uint64_t page = 0; page < kPages; page += page % 3 == 0 ? 1 : 2)
      write(page, 1);
    auto receiving = std::async(std::launch::async, [&] { return receiver_->receive(); });
    const auto sending = sender(options);
    pages_.add_all();
    for (uint32_t round = 0; round < 3; ++round) {
      sending->begin(round, pages_, round == 2);
      const auto sent = sending->finish();
      ASSERT_TRUE(sent.has_value()) << sent.error().message();
      EXPECT_EQ(round_done(), (RoundMark{round, sent->pages}));
      expect_same();
      pages_.clear();
      if (round == 0)
        for (uint64_t page = 5; page < kPages; page += 97) {
          if (page % 2 == 0)
            std::memset(at(page), 0, kPageBytes);
          else
            write(page, 2);
          pages_.add(vmm::Gpa{page * kPageBytes}, 1);
        }
    }
    ASSERT_TRUE(sources_[0]->voice().say(FrameKind::kState, std::span<const std::byte>()).has_value());
    const auto frame = receiving.get();
    ASSERT_TRUE(frame.has_value()) << frame.error().message();
    EXPECT_EQ(frame->kind, FrameKind::kState);
  }

  Place place_;
  GuestMemory from_;
  GuestMemory to_;
  DirtyPages pages_;
  std::vector<std::unique_ptr<Call>> sources_;
  std::unique_ptr<Call> control_;
  std::vector<std::unique_ptr<Call>> streams_;
  std::unique_ptr<PageReceiver> receiver_; // goes before its links
};

TEST_F(PageLinks, CarryRoundsOfPagesOverOneLink) {
  move_all(1);
}
TEST_F(PageLinks, CarryRoundsOfPagesOverSeveral) {
  move_all(4);
}
TEST_F(PageLinks, CarryRoundsOfPagesCompressed) {
  SenderOptions options;
  options.zstd_level = 1;
  move_all(3, options);
}

TEST_F(PageLinks, AgreeOnWhatWasSentToTheLastFrame) {
  connect(2);
  auto receiving = std::async(std::launch::async, [&] { return receiver_->receive(); });
  write(3, 1);
  say_round_end(*sources_[0], 0, say_pages(*sources_[0], 3, 1));
  say_round_end(*sources_[1], 0, 0);
  EXPECT_EQ(round_done().pages, 1U);
  const auto sent = digests();
  ASSERT_TRUE(sources_[0]->voice().say(FrameKind::kState, std::span<const std::byte>()).has_value());
  ASSERT_TRUE(receiving.get().has_value());
  EXPECT_TRUE(receiver_->check(sent).has_value());
  for (size_t link = 0; link < sent.size(); ++link) {
    auto other = sent;
    other[link].digest ^= 1;
    EXPECT_FALSE(receiver_->check(other).has_value());
    other = sent;
    ++other[link].frames;
    EXPECT_FALSE(receiver_->check(other).has_value());
  }
  EXPECT_FALSE(receiver_->check({sent[0]}).has_value()) << "a link was forgotten";
}

// Link 1 sends a page of the next round before link 0 sends the same page of this one.
TEST_F(PageLinks, ReadNothingOfARoundBeforeAllLinksCameToItsEnd) {
  connect(2);
  auto receiving = std::async(std::launch::async, [&] { return receiver_->receive(); });
  say_round_end(*sources_[1], 0, 0);
  write(9, 2);
  const uint64_t newer = say_pages(*sources_[1], 9, 1);
  say_round_end(*sources_[1], 1, newer);
  write(9, 1);
  say_round_end(*sources_[0], 0, say_pages(*sources_[0], 9, 1));
  EXPECT_EQ(round_done(), (RoundMark{0, 1}));
  say_round_end(*sources_[0], 1, 0);
  EXPECT_EQ(round_done(), (RoundMark{1, 1}));
  write(9, 2);
  EXPECT_EQ(std::memcmp(at(9), at_destination(9), kPageBytes), 0);
  sources_.clear();
  EXPECT_FALSE(receiving.get().has_value());
}

TEST_F(PageLinks, RefuseWhatIsCountedOtherwise) {
  for (const RoundMark wrong : {RoundMark{0, 7}, RoundMark{1, 0}}) {
    connect(1);
    auto receiving = std::async(std::launch::async, [&] { return receiver_->receive(); });
    say_round_end(*sources_[0], wrong.round, wrong.pages);
    const auto frame = receiving.get();
    ASSERT_FALSE(frame.has_value());
    EXPECT_EQ(frame.error().reason, "counts its rounds or their pages otherwise");
    sources_.clear();
    receiver_.reset();
  }
}
TEST_F(PageLinks, TakeNothingButPagesOnAStream) {
  connect(2);
  auto receiving = std::async(std::launch::async, [&] { return receiver_->receive(); });
  ASSERT_TRUE(sources_[1]->voice().say(FrameKind::kWord, encode(Word::kCommit)).has_value());
  const auto frame = receiving.get();
  ASSERT_FALSE(frame.has_value());
  EXPECT_EQ(frame.error().reason, "sends what is for the control link");
}
TEST_F(PageLinks, TellWhatTheSourceSaysOfItsEnd) {
  connect(3);
  auto receiving = std::async(std::launch::async, [&] { return receiver_->receive(); });
  say_round_end(*sources_[1], 0, 0); // and waits for the others
  sources_[0]->refuse({"migrate", "vm1", "was cancelled", vmm::Status::kFailed});
  const auto frame = receiving.get();
  ASSERT_FALSE(frame.has_value());
  EXPECT_NE(frame.error().reason.find("was cancelled"), std::string::npos) << frame.error().message();
}

// In the middle of a round; nobody is left waiting on either side.
TEST_F(PageLinks, FailWhereOneOfThemDoes) {
  for (const size_t which : {size_t{0}, size_t{1}}) {
    connect(2);
    for (uint64_t page = 0; page < kPages; ++page)
      write(page, 3);
    auto receiving = std::async(std::launch::async, [&] { return receiver_->receive(); });
    pages_.add_all();
    const auto sending = sender();
    sending->begin(0, pages_, false);
    (which == 0 ? *control_ : *streams_[0]).link().cut();
    EXPECT_FALSE(receiving.get().has_value());
    receiver_.reset();
    control_.reset();
    streams_.clear();
    EXPECT_FALSE(sending->finish().has_value());
    EXPECT_FALSE(sending->finish().has_value()) << "no round can follow it";
    sources_[0]->link().cut();
    sources_[1]->link().cut();
  }
}
TEST_F(PageLinks, CanBeCancelledBeforeAPeerThatDoesNotRead) {
  connect(1);
  for (uint64_t page = 0; page < kPages; ++page)
    write(page, 3);
  std::stop_source stop;
  SenderOptions options;
  options.stop = stop.get_token();
  const auto sending = sender(std::move(options));
  pages_.add_all();
  sending->begin(0, pages_, false);
  stop.request_stop();
  const auto sent = sending->finish();
  ASSERT_FALSE(sent.has_value());
  EXPECT_TRUE(sent.error().reason == "was cancelled" || sent.error().reason == "was cut") << sent.error().reason;
}

} // namespace
} // namespace stopvisor::migrate
