// SPDX-License-Identifier: Apache-2.0
// A migration that is called off, by whomever and whenever, leaves the guest on one side; so does a machine that
// ends.
#include "tests/kvm/migrate_fixture.h"

namespace stopvisor::vmm::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using MigrateEnd = MigrateTest;

TEST_F(MigrateEnd, OfCancels) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  const uint32_t count = migrations(6, 20, 200);
  for (uint32_t round = 0; round < count; ++round) {
    const Vm* const before = guest.vm.get();
    const Outcome outcome = move(guest, over(round % 2 == 0 ? 1 : 4), [&](Journey& journey) {
      await_some_moment(journey);
      journey.stop.request_stop();
    });
    if (!outcome.source) {
      EXPECT_EQ(outcome.source.error().reason, "was cancelled");
    }
    ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
  }
  std::printf("             %u of %u were moved before they could be cancelled\n", moved_, count);
}

TEST_F(MigrateEnd, OfDestinationsThatAreCalledOff) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  const uint32_t count = migrations(4, 12, 100);
  for (uint32_t round = 0; round < count; ++round) {
    const Vm* const before = guest.vm.get();
    const Outcome outcome = move(guest, over(round % 2 == 0 ? 1 : 4), [&](Journey& journey) {
      await_some_moment(journey);
      journey.arrival->cancel();
    });
    if (!outcome.source) { // and not that it said nothing for a while
      EXPECT_TRUE(outcome.source.error().reason.starts_with("hung up") ||
                  outcome.source.error().reason.starts_with("refuses: ") ||
                  outcome.source.error().reason.starts_with("gave up"))
          << outcome.source.error().message();
    }
    ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
  }
  std::printf("             %u of %u were moved before\n", moved_, count);
}

// What is asked for before the destination has said that it is ready is heard before the guest is given away.
TEST_F(MigrateEnd, HearsOfACancelBeforeItCommits) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  const Vm* const before = guest.vm.get();
  at_state_ = [](Journey& journey) { journey.stop.request_stop(); };
  const Outcome outcome = move(guest);
  ASSERT_FALSE(outcome.source.has_value());
  EXPECT_EQ(outcome.source.error().reason, "was cancelled");
  ASSERT_NO_FATAL_FAILURE(expect_one_side(outcome, guest, before));
}
TEST_F(MigrateEnd, HearsOfAnEndBeforeItCommits) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  at_state_ = [&](Journey&) { guest.vm->request_end({EndKind::kRequested, ""}); };
  const Outcome outcome = move(guest);
  ASSERT_FALSE(outcome.source.has_value());
  EXPECT_EQ(outcome.source.error().reason, "the VM ended meanwhile");
  ASSERT_FALSE(outcome.destination.has_value());
  EXPECT_EQ(outcome.destination.error().reason, "the source took the guest back");
}
TEST_F(MigrateEnd, IsNotOverForATimeThatIsOverOnceItSwitches) {
  Guest guest = small(2);
  ASSERT_NE(guest.vm, nullptr);
  migrate::SourceOptions options;
  options.timeout = seconds(3);
  options.max_downtime = seconds(10);
  const auto over = stopper::Clock::now() + milliseconds(3500);
  at_phase_ = [&](std::string_view phase) {
    if (phase == "handing over") // nobody is waited for: it is the time itself that is to pass
      std::this_thread::sleep_until(over);
  };
  const Outcome outcome = move(guest, options);
  if (!outcome.source && outcome.source.error().status == Status::kBusy)
    GTEST_SKIP() << "this host is too slow to begin the switch in time: " << outcome.source.error().message();
  ASSERT_TRUE(outcome.source.has_value()) << outcome.source.error().message();
  goes_on(*guest.vm);
}

// Its guest may have been given away by then, but never goes on here.
TEST_F(MigrateEnd, OfMachinesThatEnd) {
  const uint32_t count = migrations(4, 12, 100);
  for (uint32_t round = 0; round < count; ++round) {
    Guest guest = small(2);
    ASSERT_NE(guest.vm, nullptr);
    Vm& vm = *guest.vm;
    const Vm* const before = guest.vm.get();
    const Outcome outcome = move(guest, over(2), [&](Journey& journey) {
      await_some_moment(journey);
      if (!is_over(journey))
        vm.request_end({EndKind::kRequested, ""});
    });
    if (!outcome.source) {
      EXPECT_NE(outcome.source.error().reason.find("ended"), std::string::npos) << outcome.source.error().message();
    }
    if (outcome.destination) {
      ASSERT_NE(guest.vm.get(), before);
      ASSERT_NO_FATAL_FAILURE(goes_on(*guest.vm));
      ++moved_;
    } else {
      EXPECT_FALSE(outcome.source.has_value());
      EXPECT_EQ(guest.vm->state(), VmState::kEnded);
      EXPECT_EQ(guest.vm->wait_for_end().kind, EndKind::kRequested);
    }
  }
  std::printf("             %u of %u were moved before\n", moved_, count);
}

} // namespace
} // namespace stopvisor::vmm::testing
