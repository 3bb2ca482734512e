// SPDX-License-Identifier: Apache-2.0
// A call is what both sides have agreed on, or a reason; and each side says that it lives.
#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <thread>

#include "tests/unit/migrate/calls.h"
#include "tools/migrate/event_queue.h"
#include "tools/migrate/rate_limit.h"

namespace stopvisor::migrate {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::CallPair;
using testing::hello_of;
using testing::Place;

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

TEST(Call, IsWhatBothSidesSettleOn) {
  Place place;
  Hello hello = hello_of(std::byte{3}, LinkRole::kStream, 4);
  hello.features = kFeatureZeroRuns | kFeatureCopies;
  const CallPair calls(place, hello);
  EXPECT_EQ(calls.destination->hello(), hello);
  EXPECT_EQ(calls.source->welcome().features, hello.features);
  EXPECT_EQ(calls.source->welcome(), calls.destination->welcome());
}

// The source's side, where `answer` is what the other says to its hello.
std::string called(const std::function<void(std::unique_ptr<Link>&)>& answer) {
  Place place;
  auto calling = std::async(std::launch::async, [&] { return place.call(hello_of(std::byte{1})); });
  auto link = place.listener().accept({}, testing::kPatient).value();
  FrameReader reader(*link);
  Frame frame;
  EXPECT_TRUE(reader.read(frame).has_value());
  EXPECT_EQ(frame.kind, FrameKind::kHello);
  answer(link);
  const auto call = calling.get();
  return call ? "agreed" : call.error().reason;
}
TEST(Call, TakesNoAnswerThatWasNotOffered) {
  const auto says = [](const Welcome& welcome) {
    return [welcome](std::unique_ptr<Link>& link) {
      FrameWriter writer(*link);
      EXPECT_TRUE(writer.write(FrameKind::kWelcome, encode(welcome)).has_value());
    };
  };
  EXPECT_EQ(called(says({.version = kProtocolVersion, .features = 0, .program = ""})), "agreed");
  EXPECT_EQ(called(says({.version = 9, .features = 0, .program = ""})), "answers with what was not offered");
  EXPECT_EQ(called(says({.version = kProtocolVersion, .features = kFeatureTls, .program = ""})),
            "answers with what was not offered");
}
TEST(Call, NamesWhyItIsRefused) {
  const auto said = called([](std::unique_ptr<Link>& link) {
    FrameWriter writer(*link);
    const vmm::Error why{"run --incoming", "vm1", "no place for it", vmm::Status::kBusy};
    EXPECT_TRUE(writer.write(FrameKind::kRefusal, encode(why)).has_value());
  });
  EXPECT_NE(said.find("refuses: "), std::string::npos) << said;
  EXPECT_NE(said.find("no place for it"), std::string::npos) << said;
}
TEST(Call, IsNoneWhereTheOtherHangsUpOrSaysSomethingElse) {
  EXPECT_EQ(called([](std::unique_ptr<Link>& link) { link.reset(); }), "hung up");
  EXPECT_NE(called([](std::unique_ptr<Link>& link) {
              FrameWriter writer(*link);
              EXPECT_TRUE(writer.write(FrameKind::kHello, encode(hello_of(std::byte{1}))).has_value());
            }).find("in place of"),
            std::string::npos);
}
TEST(Call, CanBeCancelled) {
  Place place;
  std::stop_source stop;
  auto calling =
      std::async(std::launch::async, [&] { return place.call(hello_of(std::byte{1}), stop.get_token()); });
  const auto link = place.listener().accept({}, testing::kPatient).value();
  stop.request_stop();
  const auto call = calling.get();
  ASSERT_FALSE(call.has_value());
  EXPECT_TRUE(call.error().reason == "was cut" || call.error().reason == "was cancelled") << call.error().reason;
}
// Whatever moment it comes at: it is a call or an error, and a call that was made can be used.
TEST(Call, CanBeCancelledAtTheMomentItIsMade) {
  for (int round = 0; round < 200; ++round) {
    Place place;
    std::stop_source stop;
    auto calling =
        std::async(std::launch::async, [&] { return place.call(hello_of(std::byte{1}), stop.get_token()); });
    auto link = place.listener().accept({}, testing::kPatient).value();
    const auto taken = Call::take("destination", std::move(link), testing::kPatient);
    if (taken)
      (void)(*taken)->answer();
    stop.request_stop();
    const auto call = calling.get();
    EXPECT_TRUE(call || call.error().reason == "was cut" || call.error().reason == "hung up");
  }
}

TEST(Call, ExpectsOneKindOfFrame) {
  Place place;
  const CallPair calls(place);
  ASSERT_TRUE(calls.source->voice().say(FrameKind::kMachine, bytes_of("one")).has_value());
  const auto machine = calls.destination->expect(FrameKind::kMachine);
  ASSERT_TRUE(machine.has_value());
  EXPECT_EQ(machine->payload, bytes_of("one"));
  calls.source->refuse({"migrate", "vm1", "was cancelled", vmm::Status::kFailed});
  const auto refused = calls.destination->expect(FrameKind::kState);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().reason.find("was cancelled"), std::string::npos) << refused.error().message();
}

TEST(Voice, SaysThatItLivesWhereNobodySpeaks) {
  Place place;
  const CallPair calls(place);
  std::array<std::byte, kFrameHeaderBytes> header{};
  ASSERT_TRUE(calls.destination->link().read(header).has_value()); // the next thing that comes
  const auto kind = static_cast<std::byte>(FrameKind::kAlive);
  EXPECT_NE(std::ranges::find(header, kind), header.end());
}
TEST(Voice, KeepsFramesOfSeveralThreadsApart) {
  Place place;
  const CallPair calls(place);
  constexpr size_t kThreads = 4;
  constexpr size_t kFrames = 200;
  {
    std::vector<std::jthread> speakers;
    for (size_t thread = 0; thread < kThreads; ++thread)
      speakers.emplace_back([&, thread] {
        const std::vector<std::byte> payload(1000 + thread, static_cast<std::byte>(thread));
        for (size_t frame = 0; frame < kFrames; ++frame)
          EXPECT_TRUE(calls.source->voice().say(FrameKind::kMachine, payload).has_value());
      });
    std::array<size_t, kThreads> heard{};
    for (size_t frame = 0; frame < kThreads * kFrames; ++frame) {
      const auto came = calls.destination->expect(FrameKind::kMachine);
      ASSERT_TRUE(came.has_value()) << came.error().message();
      const auto thread = std::to_integer<size_t>(came->payload.front());
      ASSERT_EQ(came->payload, std::vector<std::byte>(1000 + thread, static_cast<std::byte>(thread)));
      ++heard[thread];
    }
    for (const size_t count : heard)
      EXPECT_EQ(count, kFrames);
  }
  EXPECT_EQ(calls.source->voice().tally().digest, calls.destination->reader().tally().digest);
}

TEST(Ear, TellsAllThatCameAndThenThatTheLinkIsGone) {
  Place place;
  CallPair calls(place);
  EventQueue<Ear::Heard> heard;
  const Ear ear(*calls.destination, {FrameKind::kWord},
                [&](Ear::Heard what) { return heard.push(std::move(what)); });
  ASSERT_TRUE(calls.source->voice().say(FrameKind::kWord, encode(Word::kCommit)).has_value());
  calls.source.reset();
  const auto until = steady_clock::now() + testing::kPatient;
  const auto word = heard.next(until);
  ASSERT_TRUE(word && word->link);
  EXPECT_EQ(word->frame.kind, FrameKind::kWord);
  const auto end = heard.next(until);
  ASSERT_TRUE(end && !end->link);
  EXPECT_EQ(end->link.error().reason, "hung up");
}

TEST(Ear, KeepsNoPayloadOfWhatIsOfNoUse) {
  Place place;
  CallPair calls(place);
  EventQueue<Ear::Heard> heard;
  const Ear ear(*calls.destination, {FrameKind::kRefusal},
                [&](Ear::Heard what) { return heard.push(std::move(what)); });
  ASSERT_TRUE(calls.source->voice().say(FrameKind::kWord, encode(Word::kCommit)).has_value());
  const auto word = heard.next(steady_clock::now() + testing::kPatient);
  ASSERT_TRUE(word && word->link);
  EXPECT_EQ(word->frame.kind, FrameKind::kWord);
  EXPECT_TRUE(word->frame.payload.empty());
}

TEST(Ear, CutsAPeerThatSaysMoreThanAnybodyListensTo) {
  Place place;
  CallPair calls(place);
  EventQueue<Ear::Heard> heard;
  const Ear ear(*calls.destination, {FrameKind::kWord},
                [&](Ear::Heard what) { return heard.push(std::move(what)); });
  while (calls.source->voice().say(FrameKind::kWord, encode(Word::kCommit)).has_value()) {
  }
  size_t words = 0;
  for (;; ++words) {
    const auto next = heard.next(steady_clock::now() + testing::kPatient);
    ASSERT_TRUE(next.has_value());
    if (next->link)
      continue;
    EXPECT_EQ(next->link.error().reason, "was cut");
    break;
  }
  EXPECT_EQ(words, kMostWaiting);
}

TEST(EventQueue, GivesEventsInTheirOrderAndNothingWhereThereIsNone) {
  EventQueue<int> events;
  EXPECT_FALSE(events.next(steady_clock::now()).has_value());
  events.push(1);
  events.push(2);
  EXPECT_EQ(events.next(steady_clock::now()), 1);
  EXPECT_EQ(events.next(steady_clock::now()), 2);
  std::jthread other([&] { events.push(3); });
  EXPECT_EQ(events.next(steady_clock::now() + testing::kPatient), 3);
}

TEST(RateLimit, LetsWaitForWhatWasTakenBefore) {
  RateLimit limit(1'000'000);
  const std::stop_source never;
  const auto begin = steady_clock::now();
  limit.take(300'000, never.get_token()); // at once; a tenth of a second of it is for free
  limit.take(1, never.get_token());
  EXPECT_GE(steady_clock::now() - begin, milliseconds(199));
}
TEST(RateLimit, LetsNobodyWaitWhoIsToStopOrHasNoLimit) {
  std::stop_source stop;
  RateLimit slow(1);
  slow.take(1'000'000, stop.get_token());
  std::jthread stopping([&] { stop.request_stop(); });
  slow.take(1, stop.get_token()); // eleven days, were it not for that
  RateLimit none(0);
  none.take(uint64_t{1} << 60, {});
  none.take(1, {});
}

} // namespace
} // namespace stopvisor::migrate
