// SPDX-License-Identifier: Apache-2.0
// The engine with a guest that does what the test says: what is written, what is refused, and what is taken back.
#include <gtest/gtest.h>

#include "tests/unit/patch/fake_guest.h"

namespace stopvisor::patch {
namespace {

using namespace testing;
using std::chrono::milliseconds;
using std::chrono::seconds;
using vmm::Status;

class EngineTest : public ::testing::Test {
protected:
  static constexpr uint64_t kCode = 0x20'0000;
  static constexpr uint64_t kData = 0x30'0000;

  EngineTest() {
    guest.put_bytes(kCode, hex({0x0f, 0x1f, 0x44, 0x00, 0x00, 0x90, 0xc3})); // nop 5, nop, ret
    guest.put<uint64_t>(kData, 7);
  }

  Options options() {
    Options made;
    made.deadline = clock.time + seconds(5);
    made.author = {1000, 42};
    return made;
  }
  static Manifest code_patch(const std::string& name = "code") {
    return manifest_of(
        name, {write_of("gva:0x200000", SiteKind::kCode, hex({0x0f, 0x1f, 0x44, 0, 0}), hex({0xb8, 1, 0, 0, 0}))});
  }
  static Manifest data_patch(const std::string& name, uint64_t gpa, int before, int after) {
    return manifest_of(name, {write_of("gpa:" + vmm::to_hex(gpa), SiteKind::kData, hex({before}), hex({after}))});
  }
  static std::string message(const Result& result) { return result ? "" : result.error().error.message(); }
  static Status status(const Result& result) { return result ? Status::kUsage : result.error().error.status; }

  FakeGuest guest;
  FakeClock clock;
  FakeHooks hooks;
  Engine engine{guest, clock, &hooks};
};

TEST_F(EngineTest, AppliesAndRevertsByteForByte) {
  const Bytes original = guest.everything();
  Manifest patch = code_patch();
  patch.writes.push_back(
      write_of("gva:0x2fffff", SiteKind::kData, hex({0, 7}), hex({0xaa, 0xbb}))); // over two pages
  const auto applied = engine.apply(patch, options());
  ASSERT_TRUE(applied.has_value()) << message(applied);
  EXPECT_EQ(guest.bytes_at(kCode, 6), hex({0xb8, 1, 0, 0, 0, 0x90}));
  EXPECT_EQ(guest.bytes_at(0x2f'ffff, 2), hex({0xaa, 0xbb}));
  ASSERT_EQ(applied->sites.size(), 2U);
  EXPECT_EQ(applied->sites[1].before, hex({0, 7}));
  const Ledger::Entry record = engine.find("code");
  ASSERT_NE(record, nullptr);
  EXPECT_EQ(record->author.uid, 1000U);
  EXPECT_EQ(record->sites[1].where.size(), 2U);
  ASSERT_TRUE(record->sites[0].window.has_value());
  EXPECT_EQ(record->sites[0].window->size(), 5U);
  EXPECT_TRUE(engine.verify("", options()).has_value());

  const auto reverted = engine.revert("code", options());
  ASSERT_TRUE(reverted.has_value()) << message(reverted);
  EXPECT_EQ(guest.everything(), original);
  EXPECT_EQ(engine.find("code"), nullptr);
  const auto history = engine.ledger().history();
  ASSERT_EQ(history.size(), 2U);
  EXPECT_EQ(history[0].what, "apply");
  EXPECT_EQ(history[1].what, "revert");
}

TEST_F(EngineTest, OneWrongExpectAmongManyWritesNothing) {
  std::vector<Write> writes;
  for (uint64_t i = 0; i < 64; ++i)
    writes.push_back(write_of("gva:" + vmm::to_hex(kData + 0x1000 + i * 0x100), SiteKind::kData,
                              hex({i == 37 ? 1 : 0}), hex({0xee})));
  const Bytes original = guest.everything();
  const auto refused = engine.apply(manifest_of("many", writes), options());
  EXPECT_EQ(status(refused), Status::kRefused);
  EXPECT_EQ(message(refused),
            "patch apply: many: site 38 (gva:0x303500): expected 01, found 00; nothing was written");
  EXPECT_EQ(guest.everything(), original);
  EXPECT_EQ(guest.writes, 0U);
  EXPECT_TRUE(engine.list().empty());
}

TEST_F(EngineTest, ListsAllReasonsAndCountsThoseThatAreTooMany) {
  std::vector<Write> writes;
  for (uint64_t i = 0; i < 100; ++i)
    writes.push_back(
        write_of("gpa:" + vmm::to_hex(kData + 0x1000 + i * 0x100), SiteKind::kData, hex({1}), hex({2})));
  writes.push_back(write_of("gva:0x500000", SiteKind::kData, hex({1}), hex({2}))); // not mapped
  Manifest patch = manifest_of("many", writes);
  patch.require.push_back({*parse_place("gpa:0x300000"), 8, Comparison::kEqual, 8, ~0ULL});
  auto refused = engine.apply(patch, options());
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().reasons.front().check, Check::kTranslation);
  EXPECT_EQ(refused.error().reasons.size(), 65U); // 64, and the first of a check that had not spoken
  EXPECT_EQ(refused.error().reasons.back().text, "require 1 (gpa:0x300000): is 0x7, must be eq 0x8");
  EXPECT_NE(message(refused).find("; and 37 more; nothing was written"), std::string::npos) << message(refused);

  // What is forced must not hide what is not.
  Options force = options();
  force.forced.add(Check::kExpect);
  patch.writes.pop_back();
  refused = engine.apply(patch, force);
  ASSERT_FALSE(refused.has_value());
  ASSERT_EQ(refused.error().reasons.size(), 1U);
  EXPECT_EQ(refused.error().reasons[0].check, Check::kRequire);
}

TEST_F(EngineTest, CheckWritesNothingAndSaysWhatItWould) {
  const Bytes original = guest.everything();
  const auto checked = engine.check(code_patch(), options());
  ASSERT_TRUE(checked.has_value()) << message(checked);
  EXPECT_EQ(checked->sites[0].after, hex({0xb8, 1, 0, 0, 0}));
  EXPECT_EQ(checked->sites[0].address, "gva:0x200000");
  EXPECT_EQ(checked->cost.stop->hold_ns, 2);
  EXPECT_EQ(guest.everything(), original);
  EXPECT_TRUE(engine.list().empty());
  EXPECT_TRUE(engine.ledger().history().empty());
}

TEST_F(EngineTest, RefusesPlacesThatAreNotThere) {
  const struct {
    const char* at;
    SiteKind kind;
    const char* words;
  } cases[] = {
      {"gva:0x500000", SiteKind::kData, "is not mapped"},
      {"gva:0x3fffff", SiteKind::kData, "is not mapped"}, // its second byte
      {"gpa:0x7fffff", SiteKind::kData, "are not all RAM"},
      {"gpa:0xfffffffffffffff0", SiteKind::kData, "are not all RAM"},
      {"gva:0x300000@7", SiteKind::kData, "there is no vCPU 7"},
      {"gva:0x300000@cr3=0x7000000", SiteKind::kData, "outside"},
      {"gva:0x300000@pid=1", SiteKind::kData, "no Linux"},
      {"sym:foo", SiteKind::kCode, "no Linux"},
      {"gva:0x8000000000000000", SiteKind::kData, "canonical"},
  };
  for (const auto& one : cases) {
    const Bytes original = guest.everything();
    const auto refused =
        engine.apply(manifest_of("p", {write_of(one.at, one.kind, hex({0, 0}), hex({1, 1}))}), options());
    EXPECT_EQ(status(refused), Status::kRefused) << one.at;
    EXPECT_NE(message(refused).find(one.words), std::string::npos) << message(refused);
    EXPECT_EQ(guest.everything(), original);
  }
}

TEST_F(EngineTest, RefusesByTheGuestsOwnRightsUnlessForced) {
  guest.map(kData, kData | 5);                // user, present, not writable
  guest.map(kCode, kCode | 7 | (1ULL << 63)); // not executable
  Manifest patch = code_patch("rights");
  patch.writes.push_back(write_of("gva:0x300000", SiteKind::kData, hex({7}), hex({8})));
  const auto refused = engine.apply(patch, options());
  ASSERT_FALSE(refused.has_value());
  ASSERT_EQ(refused.error().reasons.size(), 2U);
  EXPECT_NE(message(refused).find("cannot be executed"), std::string::npos);
  EXPECT_NE(message(refused).find("cannot be written"), std::string::npos);
  Options force = options();
  force.forced.add(Check::kRights);
  const auto forced = engine.apply(patch, force);
  ASSERT_TRUE(forced.has_value()) << message(forced);
  EXPECT_EQ(forced->overruled.size(), 2U);
  EXPECT_EQ(engine.find("rights")->overruled.size(), 2U);
  EXPECT_EQ(engine.find("rights")->forced, std::vector<Check>{Check::kRights});
}

TEST_F(EngineTest, RefusesSitesThatOverlap) {
  Manifest patch = data_patch("own", kData, 7, 8);
  patch.writes.push_back(write_of("gva:0x300000", SiteKind::kData, hex({7, 0}), hex({9, 0}))); // the same memory
  const auto own = engine.apply(patch, options());
  EXPECT_NE(message(own).find("overlaps site"), std::string::npos) << message(own);
  EXPECT_EQ(status(own), Status::kRefused);
  ASSERT_TRUE(engine.apply(data_patch("one", kData + 8, 0, 1), options()).has_value());
  const auto foreign = engine.apply(
      manifest_of("two", {write_of("gva:0x300007", SiteKind::kData, hex({0, 1, 0}), hex({1, 1, 1}))}), options());
  EXPECT_NE(message(foreign).find("overlaps patch one at gpa:0x300008"), std::string::npos) << message(foreign);
  EXPECT_EQ(guest.bytes_at(kData + 7, 3), hex({0, 1, 0}));
}

TEST_F(EngineTest, DriftIsShownThreeWaysAndNothingIsWritten) {
  ASSERT_TRUE(engine.apply(data_patch("one", kData, 7, 8), options()).has_value());
  guest.put<uint8_t>(kData, 9);
  const size_t writes = guest.writes;
  const std::string drift = "site 1 (gpa:0x300000): originally 07, written 08, found 09";
  const auto all = engine.verify("", options());
  EXPECT_EQ(message(all), "patch verify: patch one, " + drift);
  const auto one = engine.verify("one", options());
  EXPECT_EQ(message(one), "patch verify: one: " + drift);
  const auto revert = engine.revert("one", options());
  EXPECT_EQ(message(revert), "patch revert: one: " + drift + "; nothing was written");
  for (const auto* const result : {&all, &one, &revert})
    EXPECT_EQ(status(*result), Status::kDrift);
  EXPECT_EQ(guest.writes, writes);
  ASSERT_NE(engine.find("one"), nullptr);
  Options force = options();
  force.forced.add(Check::kDrift);
  EXPECT_TRUE(engine.revert("one", force).has_value());
  EXPECT_EQ(guest.bytes_at(kData, 1), hex({7}));
}

TEST_F(EngineTest, PatchesWhoseRangesAreDisjointAreRevertedInAnyOrder) {
  const Bytes original = guest.everything();
  ASSERT_TRUE(engine.apply(data_patch("one", kData, 7, 8), options()).has_value());
  ASSERT_TRUE(engine.apply(data_patch("two", kData + 1, 0, 9), options()).has_value());
  EXPECT_TRUE(engine.revert("one", options()).has_value());
  EXPECT_EQ(guest.bytes_at(kData, 2), hex({7, 9}));
  EXPECT_TRUE(engine.revert("two", options()).has_value());
  EXPECT_EQ(guest.everything(), original);
}

TEST_F(EngineTest, RelationsOfPatchesAreKept) {
  Manifest two = data_patch("two", kData + 1, 0, 9);
  two.depends = {"one"};
  Manifest three = data_patch("three", kData + 2, 0, 9);
  three.conflicts = {"two"};
  EXPECT_NE(message(engine.apply(two, options())).find("it depends on patch one, which is not applied"),
            std::string::npos);
  ASSERT_TRUE(engine.apply(data_patch("one", kData, 7, 8), options()).has_value());
  ASSERT_TRUE(engine.apply(two, options()).has_value());
  EXPECT_NE(message(engine.apply(two, options())).find("it is applied already"), std::string::npos);
  EXPECT_NE(message(engine.apply(three, options())).find("it conflicts with patch two"), std::string::npos);
  EXPECT_NE(message(engine.revert("one", options())).find("patch two depends on it"), std::string::npos);
  EXPECT_NE(message(engine.revert("none", options())).find("no such patch is applied"), std::string::npos);
  EXPECT_EQ(status(engine.revert("none", options())), Status::kRefused);
}

TEST_F(EngineTest, ReplaceWritesFinalBytesOnce) {
  const Bytes original = guest.everything();
  ASSERT_TRUE(engine
                  .apply(manifest_of("old", {write_of("gva:0x300000", SiteKind::kData, hex({7, 0, 0, 0}),
                                                      hex({1, 2, 3, 4}))}),
                         options())
                  .has_value());
  // Against the bytes without the old patch; over a part of what that wrote.
  Manifest fresh =
      manifest_of("fresh", {write_of("gva:0x300002", SiteKind::kData, hex({0, 0, 0}), hex({5, 6, 7}))});
  EXPECT_EQ(status(engine.replace(fresh, options())), Status::kRefused); // it replaces nothing yet
  fresh.replaces = {"old"};
  EXPECT_NE(message(engine.apply(fresh, options())).find("'patch replace'"), std::string::npos);
  std::vector<Bytes> seen;
  hooks.act = [&](Step step) {
    if (step == Step::kChecked || step == Step::kWritten)
      seen.push_back(guest.bytes_at(kData, 5));
  };
  const auto replaced = engine.replace(fresh, options());
  ASSERT_TRUE(replaced.has_value()) << message(replaced);
  EXPECT_EQ(seen, (std::vector<Bytes>{hex({1, 2, 3, 4, 0}), hex({7, 0, 5, 6, 7})}));
  EXPECT_EQ(replaced->replaced, std::vector<std::string>{"old"});
  EXPECT_EQ(engine.find("old"), nullptr);
  ASSERT_TRUE(engine.revert("fresh", options()).has_value());
  EXPECT_EQ(guest.everything(), original);
}

TEST_F(EngineTest, ReplaceThatFailsLeavesTheOldPatch) {
  ASSERT_TRUE(engine.apply(data_patch("old", kData, 7, 8), options()).has_value());
  Manifest fresh = data_patch("fresh", kData, 7, 9);
  fresh.replaces = {"old"};
  fresh.ensure.push_back({*parse_place("gpa:0x300000"), 1, Comparison::kEqual, 1, ~0ULL});
  const auto failed = engine.replace(fresh, options());
  EXPECT_EQ(status(failed), Status::kRefused);
  EXPECT_NE(message(failed).find("ensure 1 (gpa:0x300000): is 0x9, must be eq 0x1; everything is as it was"),
            std::string::npos)
      << message(failed);
  EXPECT_EQ(guest.bytes_at(kData, 1), hex({8}));
  EXPECT_TRUE(engine.verify("old", options()).has_value());
  EXPECT_EQ(engine.find("fresh"), nullptr);
}

TEST_F(EngineTest, TypedOperationsAndMasksWorkOnWhatIsThere) {
  guest.put<uint32_t>(kData, 0x0000'00ff);
  Write add = write_of("gva:0x300000", SiteKind::kData, hex({0xff, 0, 0, 0}), {});
  add.mask = hex({0, 0xff, 0xff, 0xff}); // whatever the first byte is
  add.operation = {Operation::Code::kAdd, {}, 2};
  ASSERT_TRUE(engine.apply(manifest_of("add", {add}), options()).has_value());
  EXPECT_EQ(guest.bytes_at(kData, 4), hex({1, 1, 0, 0}));
  ASSERT_TRUE(engine.revert("add", options()).has_value());
  EXPECT_EQ(guest.bytes_at(kData, 4), hex({0xff, 0, 0, 0}));
}

TEST_F(EngineTest, WhatIsNotConfirmedInTimeIsTakenBack) {
  int told = 0;
  engine.tell_expiry_to([&] { ++told; });
  Options careful = options();
  careful.confirm_within = milliseconds(100);
  ASSERT_TRUE(engine.apply(data_patch("one", kData, 7, 8), careful).has_value());
  ASSERT_TRUE(engine.apply(data_patch("two", kData + 1, 0, 8), careful).has_value());
  EXPECT_EQ(engine.next_expiry(), clock.time + milliseconds(100));
  EXPECT_EQ(told, 2);
  ASSERT_TRUE(engine.confirm("two", {}).has_value());
  engine.expire(clock.time + milliseconds(99));
  EXPECT_NE(engine.find("one"), nullptr);
  engine.expire(clock.time + milliseconds(100));
  EXPECT_EQ(engine.find("one"), nullptr);
  EXPECT_NE(engine.find("two"), nullptr);
  EXPECT_EQ(guest.bytes_at(kData, 2), hex({7, 8}));
  EXPECT_EQ(engine.next_expiry(), std::nullopt);
  EXPECT_FALSE(engine.confirm("one", {}).has_value());
  EXPECT_EQ(engine.ledger().history().back().what, "revert: not confirmed in time");
}

TEST_F(EngineTest, WhatCannotBeTakenBackIsTriedAgainOrSaysWhy) {
  Options careful = options();
  careful.confirm_within = milliseconds(1);
  ASSERT_TRUE(engine.apply(data_patch("one", kData, 7, 8), careful).has_value());
  guest.stop_error = vmm::Error{"stop", "vm", "not held in time", Status::kBusy};
  engine.expire(clock.time + milliseconds(1));
  EXPECT_EQ(engine.next_expiry(), clock.time + milliseconds(1) + seconds(1));
  EXPECT_NE(engine.find("one")->revert_problem, "");
  guest.stop_error.reset();
  guest.put<uint8_t>(kData, 9);
  engine.expire(clock.time + seconds(2));
  EXPECT_EQ(engine.next_expiry(), std::nullopt); // somebody else's bytes are there: not ours to write over
  EXPECT_NE(engine.find("one")->revert_problem.find("found 09"), std::string::npos);
  EXPECT_EQ(guest.bytes_at(kData, 1), hex({9}));
}

TEST_F(EngineTest, AResetOfTheGuestTakesAllPatchesWithIt) {
  ASSERT_TRUE(engine.apply(data_patch("one", kData, 7, 8), options()).has_value());
  ++guest.reset_count;
  guest.put<uint64_t>(kData, 7);
  EXPECT_TRUE(engine.list().empty());
  EXPECT_EQ(engine.find("one"), nullptr);
  EXPECT_TRUE(engine.apply(data_patch("one", kData, 7, 8), options()).has_value());
}

TEST_F(EngineTest, AResetBetweenLookingAndStoppingIsPreparedAnew) {
  int prepared = 0;
  hooks.act = [&](Step step) {
    if (step == Step::kPrepared && ++prepared == 1)
      ++guest.reset_count;
  };
  const auto applied = engine.apply(code_patch(), options());
  ASSERT_TRUE(applied.has_value()) << message(applied);
  EXPECT_EQ(applied->cost.attempts, 2U);
  EXPECT_EQ(engine.find("code")->resets, 1U);
  hooks.act = [&](Step step) {
    if (step == Step::kPrepared)
      ++guest.reset_count;
  };
  const auto never = engine.apply(code_patch("again"), options());
  EXPECT_EQ(status(never), Status::kBusy);
  EXPECT_NE(message(never).find("changed whenever it was looked at"), std::string::npos);
}

TEST_F(EngineTest, HoldsNoLongerThanItMay) {
  Options hasty = options();
  hasty.max_hold = std::chrono::nanoseconds(1);
  const auto late = engine.apply(data_patch("one", kData, 7, 8), hasty);
  EXPECT_EQ(status(late), Status::kBusy);
  EXPECT_NE(message(late).find("--max-hold; nothing was written"), std::string::npos);
  EXPECT_EQ(guest.bytes_at(kData, 1), hex({7}));
  EXPECT_TRUE(engine.list().empty());
}

TEST_F(EngineTest, AStopThatFailsIsToldAsItIs) {
  guest.stop_error = vmm::Error{"patch apply", "vm1", "vCPU 1 did not come", Status::kBusy};
  const auto busy = engine.apply(data_patch("one", kData, 7, 8), options());
  EXPECT_EQ(status(busy), Status::kBusy);
  EXPECT_EQ(message(busy), "patch apply: vm1: vCPU 1 did not come");
}

} // namespace
} // namespace stopvisor::patch
