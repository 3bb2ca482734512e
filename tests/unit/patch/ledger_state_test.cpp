// SPDX-License-Identifier: Apache-2.0
// A ledger that goes with a snapshot: it comes back as it was, and anything else is refused.
#include "tools/patch/ledger_state.h"

#include <gtest/gtest.h>

#include "tests/unit/patch/fake_guest.h"

namespace stopvisor::patch {
namespace {

using namespace testing;
using std::chrono::seconds;
using vmm::Status;

class LedgerStateTest : public ::testing::Test {
protected:
  static constexpr uint64_t kCode = 0x20'0000;

  LedgerStateTest() {
    guest.put_bytes(kCode, hex({0x0f, 0x1f, 0x44, 0x00, 0x00, 0x90, 0xc3})); // nop 5, nop, ret
    Manifest patch = manifest_of(
        "fix", {write_of("gva:0x200000", SiteKind::kCode, hex({0x0f, 0x1f, 0x44, 0, 0}), hex({0xb8, 1, 0, 0, 0})),
                write_of("gva:0x2fffff", SiteKind::kData, hex({0, 0}), hex({0xaa, 0xbb}))}); // over two pages
    EXPECT_TRUE(engine.apply(patch, options()).has_value());
    Options waits = options();
    waits.confirm_within = seconds(60);
    EXPECT_TRUE(
        engine.apply(manifest_of("soon", {write_of("gpa:0x300100", SiteKind::kData, hex({0}), hex({1}))}), waits)
            .has_value());
  }
  Options options() const {
    Options made;
    made.deadline = clock.time + seconds(5);
    made.author = {1000, 42};
    return made;
  }

  FakeGuest guest;
  FakeClock clock;
  FakeHooks hooks;
  Engine engine{guest, clock, &hooks};
};

TEST_F(LedgerStateTest, ComesBackInAnotherEngineAsItWas) {
  const vmm::StateSection saved = engine.save_state();
  clock.time += seconds(1000); // another host's clock
  Engine other{guest, clock, &hooks};
  ASSERT_TRUE(other.restore_state(saved).has_value());
  ASSERT_EQ(other.list().size(), 2U);
  EXPECT_EQ(other.ledger().history().size(), 2U);
  const Ledger::Entry was = engine.find("fix");
  const Ledger::Entry is = other.find("fix");
  ASSERT_TRUE(was && is);
  EXPECT_EQ(write_manifest(is->manifest), write_manifest(was->manifest));
  EXPECT_EQ(is->author.uid, 1000U);
  EXPECT_EQ(is->at, was->at);
  EXPECT_EQ(is->sites[1].where, was->sites[1].where);
  EXPECT_EQ(is->sites[0].window->starts, was->sites[0].window->starts);
  EXPECT_EQ(other.find("soon")->confirm_by, clock.time + seconds(60)) << "as long as it had left";
  EXPECT_TRUE(other.verify("", options()).has_value());
  EXPECT_TRUE(other.revert("fix", options()).has_value());
  EXPECT_EQ(guest.bytes_at(kCode, 5), hex({0x0f, 0x1f, 0x44, 0, 0}));
  EXPECT_EQ(guest.bytes_at(0x2f'ffff, 2), hex({0, 0}));
}

TEST_F(LedgerStateTest, IsTheSameWhenSavedAgain) {
  const vmm::StateSection saved = engine.save_state();
  Engine other{guest, clock, &hooks};
  ASSERT_TRUE(other.restore_state(saved).has_value());
  EXPECT_EQ(other.save_state(), saved);
}

TEST_F(LedgerStateTest, ThatIsCutOffAnywhereOrHasMoreIsRefused) {
  const vmm::StateSection saved = engine.save_state();
  for (size_t length = 0; length < saved.payload.size(); ++length) {
    vmm::StateSection cut = saved;
    cut.payload.resize(length);
    const auto state = restore_ledger(cut, clock.time);
    ASSERT_FALSE(state.has_value()) << length;
    EXPECT_EQ(state.error().status, Status::kRefused);
  }
  vmm::StateSection longer = saved;
  longer.payload.push_back(std::byte{0});
  EXPECT_FALSE(restore_ledger(longer, clock.time).has_value());
  vmm::StateSection newer = saved;
  newer.version = 2;
  EXPECT_FALSE(restore_ledger(newer, clock.time).has_value());
}

// Whatever is taken could have been saved: it is written back byte for byte.
TEST_F(LedgerStateTest, OfAnyBytesIsRefusedOrWhatItSays) {
  const vmm::StateSection saved = engine.save_state();
  size_t taken = 0;
  for (size_t at = 0; at < saved.payload.size(); ++at)
    for (const unsigned flip : {0x01U, 0x80U, 0xffU}) {
      vmm::StateSection changed = saved;
      changed.payload[at] ^= static_cast<std::byte>(flip);
      auto state = restore_ledger(changed, clock.time);
      if (!state)
        continue;
      ++taken;
      for (const Record& record : state->applied)
        for (const AppliedSite& site : record.sites) {
          ASSERT_GE(site.number, 1U);
          ASSERT_LE(site.number, record.manifest.writes.size());
          ASSERT_EQ(site.before.size(), record.manifest.writes[site.number - 1].size());
          ASSERT_EQ(site.after.size(), site.before.size());
        }
    }
  EXPECT_GT(taken, 0U) << "an author's number may be any";
}

} // namespace
} // namespace stopvisor::patch
