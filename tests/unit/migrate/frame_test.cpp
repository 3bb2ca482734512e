// SPDX-License-Identifier: Apache-2.0
// Messages on a link: what was said comes as it was, anything else is refused before it is used.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <thread>

#include "tests/unit/migrate/links.h"
#include "tools/migrate/checksum.h"
#include "tools/migrate/frame.h"

namespace stopvisor::migrate {
namespace {

using namespace testing;
using std::chrono::milliseconds;

// All of a link's bytes that `say` writes.
template <typename Say>
Bytes recorded(const Say& say) {
  Pair pair;
  FrameWriter writer(*pair.one);
  say(writer);
  pair.one.reset();
  Bytes all;
  for (Bytes byte(1); pair.other->read(byte);)
    all.push_back(byte.front());
  return all;
}

// A hello, a welcome, pages and a sign of life: what a fault can be in.
Bytes conversation() {
  return recorded([](FrameWriter& writer) {
    EXPECT_TRUE(writer.write(FrameKind::kHello, bytes_of("hello")));
    EXPECT_TRUE(writer.write(FrameKind::kAlive, Bytes()));
    EXPECT_TRUE(writer.write(FrameKind::kPages, pattern(100), kFlagZstd));
    EXPECT_TRUE(writer.write(FrameKind::kAccepted, Bytes()));
  });
}

// Reads frames from `stream` until it ends. RETURNS: the last error, and how many came before it.
std::pair<std::string, size_t> read_all(const Bytes& stream, std::vector<Frame>* to = nullptr) {
  Pair pair;
  EXPECT_TRUE(write(*pair.one, stream));
  pair.one.reset();
  FrameReader reader(*pair.other);
  for (size_t frames = 0;; ++frames) {
    Frame frame;
    if (auto read = reader.read(frame); !read) {
      Frame again; // it stays so
      EXPECT_EQ(reader.read(again).error().message(), read.error().message());
      return {read.error().reason, frames};
    }
    if (to != nullptr)
      to->push_back(frame);
  }
}

// Of the first frame in `stream`; its checksum made right again.
struct Raw {
  uint32_t magic;
  uint16_t kind;
  uint16_t flags;
  uint64_t number;
  uint32_t length;
  uint32_t zero;
  uint64_t checksum;
};
static_assert(sizeof(Raw) == kFrameHeaderBytes);

template <typename Change>
Bytes changed(Bytes stream, const Change& change) {
  Raw raw;
  std::memcpy(&raw, stream.data(), sizeof raw);
  change(raw);
  raw.checksum = 0;
  std::memcpy(stream.data(), &raw, sizeof raw);
  raw.checksum = xxh3_of(std::span(stream).first(std::min<size_t>(stream.size(), sizeof raw + raw.length)));
  std::memcpy(stream.data(), &raw, sizeof raw);
  return stream;
}

TEST(Frame, HasTheBytesOfTheReference) {
  const Bytes bytes =
      recorded([](FrameWriter& writer) { EXPECT_TRUE(writer.write(FrameKind::kHello, bytes_of("hi"))); });
  ASSERT_EQ(bytes.size(), 34U);
  EXPECT_EQ(text_of(std::span(bytes).first(4)), "SVMG");
  const Bytes rest(bytes.begin() + 4, bytes.begin() + 24);
  Bytes expected(20);
  expected[0] = std::byte(1);  // kind
  expected[12] = std::byte(2); // length
  EXPECT_EQ(rest, expected);
  Bytes unsummed = bytes;
  std::fill(unsummed.begin() + 24, unsummed.begin() + 32, std::byte(0));
  uint64_t checksum = 0;
  std::memcpy(&checksum, bytes.data() + 24, sizeof checksum);
  EXPECT_EQ(checksum, xxh3_of(unsummed));
}

TEST(Frame, ComesAsItWasSaid) {
  std::vector<Frame> frames;
  EXPECT_EQ(read_all(conversation(), &frames), std::pair(std::string("hung up"), size_t{3}));
  ASSERT_EQ(frames.size(), 3U);
  EXPECT_EQ(frames[0].kind, FrameKind::kHello);
  EXPECT_EQ(frames[0].payload, bytes_of("hello"));
  EXPECT_EQ(frames[1].kind, FrameKind::kPages);
  EXPECT_EQ(frames[1].flags, kFlagZstd);
  EXPECT_EQ(frames[1].payload, pattern(100));
  EXPECT_EQ(frames[2].kind, FrameKind::kAccepted);
  EXPECT_TRUE(frames[2].payload.empty());
}

TEST(Frame, IsTheSameInOnePieceOrInMany) {
  const Bytes payload = pattern(1'000);
  const auto in_pieces = recorded([&](FrameWriter& writer) {
    const std::array<std::span<const std::byte>, 4> parts{std::span(payload).first(1), std::span(payload).first(0),
                                                          std::span(payload).subspan(1, 700),
                                                          std::span(payload).subspan(701)};
    EXPECT_TRUE(writer.write(FrameKind::kHello, parts));
  });
  EXPECT_EQ(in_pieces,
            recorded([&](FrameWriter& writer) { EXPECT_TRUE(writer.write(FrameKind::kHello, payload)); }));
}

TEST(Frame, TheLargestOfEachKindGoesThroughAndNoLarger) {
  Pair pair;
  FrameWriter writer(*pair.one);
  FrameReader reader(*pair.other);
  ASSERT_TRUE(writer.write(FrameKind::kHello, Bytes()));
  Frame frame;
  ASSERT_TRUE(reader.read(frame));
  for (unsigned kind = 1; kind < unsigned(FrameKind::kAlive); ++kind) {
    const Bytes largest = pattern(max_payload(FrameKind(kind)));
    std::thread writes([&] { EXPECT_TRUE(writer.write(FrameKind(kind), largest)); });
    EXPECT_TRUE(reader.read(frame));
    writes.join();
    EXPECT_EQ(frame.payload, largest);
    const Bytes larger(largest.size() + 1);
    const auto refused = writer.write(FrameKind(kind), larger);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().reason.find("too large"), std::string::npos);
  }
  EXPECT_EQ(writer.tally().digest, reader.tally().digest); // a refused one was never sent
}

TEST(Frame, BothEndsTallyTheSameWithoutTheSignsOfLife) {
  Pair pair;
  FrameWriter writer(*pair.one);
  FrameReader reader(*pair.other);
  FrameTally before;
  for (const auto kind : {FrameKind::kHello, FrameKind::kAlive, FrameKind::kAlive, FrameKind::kWord}) {
    before = writer.tally();
    ASSERT_TRUE(writer.write(kind, kind == FrameKind::kAlive ? Bytes() : bytes_of("word")));
  }
  Frame frame;
  ASSERT_TRUE(reader.read(frame));
  EXPECT_EQ(reader.tally().frames, before.frames);
  EXPECT_EQ(reader.tally().bytes, before.bytes);
  EXPECT_EQ(reader.tally().digest, before.digest);
  ASSERT_TRUE(reader.read(frame));
  EXPECT_EQ(frame.kind, FrameKind::kWord);
  EXPECT_EQ(reader.tally().frames, 2U);
  EXPECT_EQ(reader.tally().bytes, 72U);
  EXPECT_EQ(reader.tally().digest, writer.tally().digest);
  EXPECT_NE(reader.tally().digest, before.digest);
}

TEST(Frame, CutOffAnywhereIsAnError) {
  const Bytes whole = conversation();
  const size_t ends[] = {0, 37, 69, 201, 233}; // of hello, sign of life, pages, acceptance
  ASSERT_EQ(whole.size(), 233U);
  for (size_t length = 0; length < whole.size(); ++length) {
    const auto [reason, frames] = read_all(Bytes(whole.begin(), whole.begin() + ptrdiff_t(length)));
    const bool between = std::ranges::find(ends, length) != std::end(ends);
    EXPECT_EQ(reason, between ? "hung up" : "hung up in the middle of a message") << length;
    EXPECT_EQ(frames, length < 37 ? 0U : length < 201 ? 1U : 2U) << length;
  }
}

TEST(Frame, AnyByteThatWasChangedIsNoticed) {
  const Bytes whole = conversation();
  for (size_t at = 0; at < whole.size(); ++at)
    for (const unsigned bits : {0x01U, 0x80U, 0xffU}) {
      Bytes stream = whole;
      stream[at] ^= static_cast<std::byte>(bits);
      const auto [reason, frames] = read_all(stream);
      EXPECT_NE(reason, "hung up") << at;
      EXPECT_LE(frames, at < 37 ? 0U : at < 201 ? 1U : 2U) << at;
    }
}

TEST(Frame, WhatIsNoneOfOursIsNamed) {
  const Bytes hello =
      recorded([](FrameWriter& writer) { EXPECT_TRUE(writer.write(FrameKind::kHello, bytes_of("hello"))); });
  const auto refusal = [&](auto change) { return read_all(changed(hello, change)).first; };
  const std::string ours = "does not speak our protocol: its message 0 ";
  EXPECT_EQ(read_all(bytes_of("GET / HTTP/1.1\r\nHost: example\r\n\r\n")).first, ours + "does not begin as one");
  EXPECT_EQ(refusal([](Raw& raw) { raw.kind = 0; }), ours + "is of kind 0, which there is not");
  EXPECT_EQ(refusal([](Raw& raw) { raw.kind = 12; }), ours + "is of kind 12, which there is not");
  EXPECT_EQ(refusal([](Raw& raw) { raw.kind = 0xffff; }), ours + "is of kind 65535, which there is not");
  EXPECT_EQ(refusal([](Raw& raw) { raw.kind = 6; }), ours + "is pages, and nobody has said hello");
  EXPECT_EQ(refusal([](Raw& raw) { raw.kind = 11; }), ours + "(a sign of life) is too long: 5 bytes");
  EXPECT_EQ(refusal([](Raw& raw) { raw.flags = 1; }), ours + "(a hello) has flags that there are not");
  EXPECT_EQ(refusal([](Raw& raw) { raw.zero = 1; }), ours + "(a hello) has flags that there are not");
  EXPECT_EQ(refusal([](Raw& raw) { raw.number = 1; }), ours + "says that it is number 1");
  EXPECT_EQ(refusal([](Raw& raw) { raw.length = 65537; }), ours + "(a hello) is too long: 65537 bytes");
  EXPECT_EQ(refusal([](Raw& raw) { raw.length = UINT32_MAX; }), ours + "(a hello) is too long: 4294967295 bytes");
  Bytes twice = hello;
  twice.insert(twice.end(), hello.begin(), hello.end());
  EXPECT_EQ(read_all(twice).first, "does not speak our protocol: its message 1 says that it is number 0");
  Bytes other = hello;
  other.back() ^= std::byte(1);
  EXPECT_EQ(read_all(other).first, "message 0 (a hello) is not what its checksum says: it was changed on its way");
}

TEST(Frame, AStrangerIsAnsweredThoughItSaysLessThanAHeader) {
  Pair pair;
  ASSERT_TRUE(write(*pair.one, "QUIT\r\n"));
  FrameReader reader(*pair.other);
  Frame frame;
  EXPECT_EQ(reader.read(frame).error().reason, "does not speak our protocol: its message 0 does not begin as one");
}

TEST(Frame, SignsOfLifeMayComeFirstAndAreNoHello) {
  Pair pair;
  FrameWriter writer(*pair.one);
  for (int time = 0; time < 3; ++time)
    ASSERT_TRUE(writer.write(FrameKind::kAlive, Bytes()));
  ASSERT_TRUE(writer.write(FrameKind::kWelcome, Bytes()));
  FrameReader reader(*pair.other);
  Frame frame;
  ASSERT_TRUE(reader.read(frame));
  EXPECT_EQ(frame.kind, FrameKind::kWelcome);
  Pair other;
  FrameWriter stranger(*other.one);
  ASSERT_TRUE(stranger.write(FrameKind::kAlive, Bytes()));
  ASSERT_TRUE(stranger.write(FrameKind::kPages, Bytes()));
  FrameReader refuses(*other.other);
  EXPECT_EQ(refuses.read(frame).error().reason,
            "does not speak our protocol: its message 1 is pages, and nobody has said hello");
}

TEST(Frame, ALengthAloneMakesNoRoom) {
  Pair pair;
  ASSERT_TRUE(write(*pair.one, recorded([](FrameWriter& writer) {
    EXPECT_TRUE(writer.write(FrameKind::kHello, bytes_of("hello")));
  })));
  const Raw raw{.magic = 0x474d5653,
                .kind = uint16_t(FrameKind::kState),
                .flags = 0,
                .number = 1,
                .length = kMaxStatePayload,
                .zero = 0,
                .checksum = 0};
  ASSERT_TRUE(write(*pair.one, std::as_bytes(std::span(&raw, 1))));
  ASSERT_TRUE(write(*pair.one, pattern(100'000)));
  pair.one.reset();
  FrameReader reader(*pair.other);
  Frame frame;
  ASSERT_TRUE(reader.read(frame));
  EXPECT_EQ(reader.read(frame).error().reason, "hung up in the middle of a message");
  EXPECT_LT(frame.payload.capacity(), size_t{1} << 20);
}

TEST(Frame, AnEndInAPayloadIsOneInAMessage) {
  Bytes stream = conversation();
  stream.resize(32); // the header of the hello, none of its payload
  EXPECT_EQ(read_all(stream).first, "hung up in the middle of a message");
}

// A stranger that says something now and then, and no hello. Without the limit this would not end.
void expect_given_up(const Bytes& said, size_t piece, milliseconds pace) {
  Pair pair;
  pair.other->set_patience(milliseconds(500));
  std::atomic<bool> over = false;
  std::thread trickles([&] {
    for (size_t at = 0; !over.load(std::memory_order_relaxed); at = (at + piece) % said.size()) {
      EXPECT_TRUE(write(*pair.one, std::span(said).subspan(at, piece)));
      EXPECT_FALSE(pair.one->readable_within(pace));
    }
  });
  FrameReader reader(*pair.other);
  Frame frame;
  const auto read = reader.read(frame);
  over.store(true, std::memory_order_relaxed);
  trickles.join();
  ASSERT_FALSE(read);
  EXPECT_TRUE(read.error().reason == "did not finish its message in time" ||
              read.error().reason == "said nothing for 500 ms") // where this host is that slow
      << read.error().reason;
}

TEST(Frame, AStrangerThatTricklesIsGivenUp) {
  const Bytes hello =
      recorded([](FrameWriter& writer) { EXPECT_TRUE(writer.write(FrameKind::kHello, Bytes(1'000))); });
  expect_given_up(hello, 1, milliseconds(20));
}

TEST(Frame, AStrangerThatOnlyShowsThatItLivesIsGivenUp) {
  const Bytes alive = recorded([](FrameWriter& writer) {
    for (int time = 0; time < 200; ++time) // numbered as they have to be
      EXPECT_TRUE(writer.write(FrameKind::kAlive, Bytes()));
  });
  expect_given_up(alive, kFrameHeaderBytes, milliseconds(5));
}

TEST(Frame, ASilentPeerAndACutAreTheLinksErrors) {
  Pair pair;
  FrameReader reader(*pair.other);
  Frame frame;
  std::thread cuts([&] { pair.other->cut(); });
  EXPECT_EQ(reader.read(frame).error().reason, "was cut");
  cuts.join();
  Pair silent;
  silent.other->set_patience(milliseconds(10));
  FrameReader waits(*silent.other);
  EXPECT_EQ(waits.read(frame).error().reason, "said nothing for 10 ms");
}

} // namespace
} // namespace stopvisor::migrate
