// SPDX-License-Identifier: Apache-2.0
// Whose hold ends when: the book of pauses and leases, over a target that only counts.
#include "vmm/control/holds.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <mutex>

namespace stopvisor::vmm {
namespace {

using std::chrono::milliseconds;

class CountingTarget final : public HoldTarget {
public:
  std::expected<void, Error> acquire(const char* operation, HoldClock::time_point) override {
    if (on_acquire)
      on_acquire();
    const std::lock_guard guard(mutex_);
    if (refuses)
      return std::unexpected(Error{operation, "vm1", "deadline passed", Status::kBusy});
    ++held_;
    return {};
  }
  void release() noexcept override {
    const std::lock_guard guard(mutex_);
    --held_;
    changed_.notify_all();
  }
  int held() const {
    const std::lock_guard guard(mutex_);
    return held_;
  }
  void wait_for(int held) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return held_ == held; });
  }

  bool refuses = false;
  std::function<void()> on_acquire;

private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int held_ = 0;
};

struct HoldsTest : testing::Test {
  CountingTarget target;
  Holds holds{target};
  const HoldClock::time_point soon = HoldClock::now() + std::chrono::seconds(60);
};

TEST_F(HoldsTest, PausesAreCounted) {
  ASSERT_TRUE(holds.pause({1, 0}, soon));
  ASSERT_TRUE(holds.pause({2, 0}, soon));
  EXPECT_EQ(target.held(), 2);
  EXPECT_TRUE(holds.resume());
  EXPECT_TRUE(holds.resume());
  EXPECT_EQ(target.held(), 0);
  EXPECT_EQ(holds.resume().error().status, Status::kRefused);
}

TEST_F(HoldsTest, PauseThatTheTargetRefusesIsNotBooked) {
  target.refuses = true;
  EXPECT_EQ(holds.pause({1, 0}, soon).error().status, Status::kBusy);
  EXPECT_EQ(holds.lease(7, {1, 0}, soon, {}).error().status, Status::kBusy);
  EXPECT_TRUE(holds.list().empty());
}

TEST_F(HoldsTest, AdoptedPauseIsGivenBackByResume) {
  holds.adopt_pause({1, 0});
  EXPECT_TRUE(holds.resume());
  EXPECT_EQ(target.held(), -1); // the target had taken it itself
}

TEST_F(HoldsTest, PauseTakenBackIsGivenBackOnce) {
  const auto pause = holds.pause({1, 0}, soon);
  ASSERT_TRUE(pause);
  holds.take_back(*pause);
  holds.take_back(*pause);
  EXPECT_EQ(target.held(), 0);
}

TEST_F(HoldsTest, ResumeLeavesLeasesAlone) {
  ASSERT_TRUE(holds.lease(7, {42, 0}, soon, {}));
  const auto resumed = holds.resume();
  ASSERT_FALSE(resumed);
  EXPECT_NE(resumed.error().reason.find("pid 42"), std::string::npos);
  EXPECT_EQ(target.held(), 1);
}

TEST_F(HoldsTest, LeaseEndsWithItsConnection) {
  ASSERT_TRUE(holds.lease(7, {1, 0}, soon, {}));
  ASSERT_TRUE(holds.lease(7, {1, 0}, soon, {}));
  ASSERT_TRUE(holds.lease(8, {1, 0}, soon, {}));
  holds.connection_ended(7);
  EXPECT_EQ(target.held(), 1);
  holds.connection_ended(7);
  EXPECT_EQ(target.held(), 1);
}

TEST_F(HoldsTest, LeaseIsEndedByItsConnectionAloneAndOnce) {
  const auto lease = holds.lease(7, {1, 0}, soon, {});
  ASSERT_TRUE(lease);
  EXPECT_FALSE(holds.end_lease(8, *lease).has_value());
  EXPECT_TRUE(holds.end_lease(7, *lease)->has_value());
  EXPECT_FALSE(holds.end_lease(7, *lease).has_value());
  EXPECT_EQ(target.held(), 0);
}

TEST_F(HoldsTest, PauseCannotBeEndedAsALease) {
  const auto pause = holds.pause({1, 0}, soon);
  ASSERT_TRUE(pause);
  EXPECT_FALSE(holds.end_lease(0, *pause).has_value());
  holds.connection_ended(0);
  EXPECT_EQ(target.held(), 1);
}

TEST_F(HoldsTest, LeaseEndsByItselfWhenItsTimeIsUpAndSaysSoOnce) {
  const auto lease = holds.lease(7, {1, 0}, soon, milliseconds(1));
  ASSERT_TRUE(lease);
  target.wait_for(0);
  EXPECT_TRUE(holds.list().empty());
  const auto ended = holds.end_lease(7, *lease);
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->error().status, Status::kBusy);
  EXPECT_FALSE(holds.end_lease(7, *lease).has_value());
  EXPECT_EQ(target.held(), 0);
}

TEST_F(HoldsTest, EarlierDeadlineIsKeptThoughALaterOneWasThereBefore) {
  ASSERT_TRUE(holds.lease(7, {1, 0}, soon, std::chrono::hours(1)));
  ASSERT_TRUE(holds.lease(8, {1, 0}, soon, milliseconds(1)));
  target.wait_for(1);
  ASSERT_EQ(holds.list().size(), 1U);
  EXPECT_EQ(holds.list().front().connection, 7U);
}

TEST_F(HoldsTest, ConnectionCannotTakeLeasesWithoutEnd) {
  for (int i = 0; i < 64; ++i)
    ASSERT_TRUE(holds.lease(7, {1, 0}, soon, {}));
  EXPECT_EQ(holds.lease(7, {1, 0}, soon, {}).error().status, Status::kRefused);
  EXPECT_TRUE(holds.lease(8, {1, 0}, soon, {}));
}

const Error kMoving{"migrate", "vm1", "the VM is being migrated to unix:/x", Status::kBusy};

TEST_F(HoldsTest, NobodyHoldsAVmThatIsAboutToGoElsewhere) {
  ASSERT_TRUE(holds.pause({1, 0}, soon));
  holds.close(kMoving);
  for (const auto& refused : {holds.pause({2, 0}, soon), holds.lease(7, {2, 0}, soon, {})}) {
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().reason, kMoving.reason);
    EXPECT_EQ(refused.error().status, Status::kBusy);
  }
  const auto resumed = holds.resume(); // the pause goes along
  ASSERT_FALSE(resumed);
  EXPECT_EQ(resumed.error().operation, "resume");
  EXPECT_EQ(resumed.error().reason, kMoving.reason);
  EXPECT_EQ(target.held(), 1);
  holds.open();
  EXPECT_TRUE(holds.resume());
  EXPECT_TRUE(holds.lease(7, {2, 0}, soon, {}));
}

TEST_F(HoldsTest, AHoldThatIsTakenAsItIsClosedIsGivenBack) {
  target.on_acquire = [this] { holds.close(kMoving); };
  for (const auto& refused : {holds.pause({2, 0}, soon), holds.lease(7, {2, 0}, soon, {})}) {
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().reason, kMoving.reason);
    holds.open();
  }
  EXPECT_EQ(target.held(), 0);
  EXPECT_TRUE(holds.list().empty());
}

TEST_F(HoldsTest, WhoChangesTheGuestUnderNoHoldCanAsk) {
  EXPECT_TRUE(holds.check_open("poke"));
  holds.close(kMoving);
  const auto refused = holds.check_open("poke");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message(), "poke: the VM is being migrated to unix:/x");
  holds.open();
  EXPECT_TRUE(holds.check_open("poke"));
}

TEST_F(HoldsTest, WhoseLeaseEndsMeanwhileIsToldWhy) {
  const auto lease = holds.lease(7, {2, 0}, soon, {});
  ASSERT_TRUE(lease);
  holds.close(kMoving);
  const auto ended = holds.end_lease(7, *lease);
  ASSERT_TRUE(ended.has_value());
  ASSERT_FALSE(ended->has_value());
  EXPECT_EQ(ended->error().reason, kMoving.reason);
  EXPECT_EQ(target.held(), 0); // it has ended all the same
}

} // namespace
} // namespace stopvisor::vmm
