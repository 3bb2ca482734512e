// SPDX-License-Identifier: Apache-2.0
// What goes wrong at each step of a change: the guest has the old bytes or the new, and the answer says which.
#include <gtest/gtest.h>

#include <new>

#include "tests/unit/patch/fake_guest.h"

namespace stopvisor::patch {
namespace {

using namespace testing;
using vmm::Status;

constexpr size_t kSites = 8;
constexpr uint64_t kData = 0x30'0000;

class EngineFaultTest : public ::testing::Test {
protected:
  EngineFaultTest() {
    options.deadline = clock.time + std::chrono::seconds(5);
    for (size_t i = 0; i < kSites; ++i) // each over a page's end: two writes
      patch.writes.push_back(write_of("gva:" + vmm::to_hex(kData + i * 0x1000 + 0xfff), SiteKind::kData,
                                      hex({0, 0}), hex({1, int(i) + 1})));
    patch.name = "p";
    patch.version = "1";
  }
  static std::string message(const Result& result) { return result ? "" : result.error().error.message(); }

  FakeGuest guest;
  FakeClock clock;
  FakeHooks hooks;
  Engine engine{guest, clock, &hooks};
  Options options;
  Manifest patch;
};

TEST_F(EngineFaultTest, AWriteThatFailsHalfWayLeavesEverythingAsItWas) {
  const Bytes original = guest.everything();
  for (size_t which = 1; which <= 2 * kSites; ++which) {
    guest.fail_from_write = guest.fail_to_write = guest.writes + which;
    const auto failed = engine.apply(patch, options);
    ASSERT_FALSE(failed.has_value());
    EXPECT_EQ(failed.error().error.status, Status::kRefused);
    EXPECT_NE(message(failed).find("site " + std::to_string((which + 1) / 2) + " ("), std::string::npos);
    EXPECT_NE(message(failed).find("cannot be written; everything is as it was"), std::string::npos)
        << message(failed);
    ASSERT_EQ(guest.everything(), original) << which;
    EXPECT_TRUE(engine.list().empty());
  }
}

TEST_F(EngineFaultTest, AWriteThatIsLostIsSeenWhenItIsReadBack) {
  const Bytes original = guest.everything();
  for (size_t which = 1; which <= 2 * kSites; ++which) {
    guest.lose_write = guest.writes + which;
    const auto failed = engine.apply(patch, options);
    ASSERT_FALSE(failed.has_value());
    EXPECT_NE(message(failed).find("does not read back as it was written; everything is as it was"),
              std::string::npos);
    ASSERT_EQ(guest.everything(), original) << which;
  }
}

TEST_F(EngineFaultTest, WhatCannotBeRestoredIsSaidAloud) {
  guest.fail_from_write = 4; // and all that follow
  const auto failed = engine.apply(patch, options);
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().error.status, Status::kFailed);
  EXPECT_NE(message(failed).find("2 sites could not be restored: THE GUEST IS PARTLY CHANGED"), std::string::npos)
      << message(failed);
}

TEST_F(EngineFaultTest, ARevertThatFailsHalfWayLeavesThePatch) {
  ASSERT_TRUE(engine.apply(patch, options).has_value());
  const Bytes patched = guest.everything();
  for (size_t which = 1; which <= 2 * kSites; ++which) {
    guest.fail_from_write = guest.fail_to_write = guest.writes + which;
    const auto failed = engine.revert("p", options);
    ASSERT_FALSE(failed.has_value());
    ASSERT_EQ(guest.everything(), patched) << which;
    EXPECT_NE(engine.find("p"), nullptr);
  }
  guest.fail_from_write = 0;
  EXPECT_TRUE(engine.verify("", options).has_value());
}

TEST_F(EngineFaultTest, AReplaceThatFailsHalfWayLeavesTheOldPatch) {
  ASSERT_TRUE(engine.apply(patch, options).has_value());
  const Bytes patched = guest.everything();
  Manifest fresh = patch;
  fresh.version = "2";
  for (Write& write : fresh.writes)
    write.operation.bytes[0] = std::byte{9};
  for (size_t which = 1; which <= 4 * kSites; ++which) { // those taken back, and those written
    guest.fail_from_write = guest.fail_to_write = guest.writes + which;
    ASSERT_FALSE(engine.replace(fresh, options).has_value());
    ASSERT_EQ(guest.everything(), patched) << which;
    EXPECT_EQ(engine.find("p")->manifest.version, "1");
  }
  guest.fail_from_write = 0;
  EXPECT_TRUE(engine.replace(fresh, options).has_value());
  EXPECT_EQ(engine.find("p")->manifest.version, "2");
}

TEST_F(EngineFaultTest, MemoryThatTheHostDoesNotHaveLeavesTheOldBytes) {
  const Bytes original = guest.everything();
  for (const Step step : {Step::kHeld, Step::kChecked, Step::kWritten, Step::kReadBack}) {
    hooks.act = [&](Step reached) {
      if (reached == step)
        throw std::bad_alloc();
    };
    const auto failed = engine.apply(patch, options);
    ASSERT_FALSE(failed.has_value());
    EXPECT_NE(message(failed).find("short of memory"), std::string::npos) << message(failed);
    ASSERT_EQ(guest.everything(), original);
    EXPECT_TRUE(engine.list().empty());
  }
}

TEST_F(EngineFaultTest, ATranslationThatIsLostBetweenLookAndStopRefuses) {
  const Bytes original = guest.bytes_at(kData, 0x10'000);
  hooks.act = [&](Step step) {
    if (step == Step::kPrepared)
      guest.map(kData + 0x3000, 0);
  };
  const auto refused = engine.apply(patch, options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.status, Status::kRefused);
  EXPECT_EQ(refused.error().reasons.size(), 2U); // the site that begins there and the one that ends there
  EXPECT_EQ(refused.error().reasons[0].check, Check::kTranslation);
  EXPECT_EQ(guest.bytes_at(kData, 0x10'000), original);
}

TEST_F(EngineFaultTest, ATranslationThatLeadsElsewhereUnderTheStopIsFollowed) {
  hooks.act = [&](Step step) {
    if (step == Step::kPrepared)
      guest.map(kData, 0x38'0000 | 7);
  };
  ASSERT_TRUE(engine.apply(patch, options).has_value());
  EXPECT_EQ(guest.bytes_at(kData + 0xfff, 1), hex({0}));
  EXPECT_EQ(guest.bytes_at(0x38'0fff, 1), hex({1}));
}

TEST_F(EngineFaultTest, BytesThatChangeBetweenLookAndStopRefuse) {
  hooks.act = [&](Step step) {
    if (step == Step::kPrepared)
      guest.put<uint8_t>(kData + 0x1000, 5);
  };
  const auto refused = engine.apply(patch, options);
  EXPECT_NE(message(refused).find("site 1 (gva:0x300fff): expected 00 00, found 00 05"), std::string::npos);
}

} // namespace
} // namespace stopvisor::patch
