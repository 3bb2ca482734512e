// SPDX-License-Identifier: Apache-2.0
// What a thread is in the middle of: two machines at once, threads that join and leave, the time before anybody is
// there.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>

#include "tests/unit/stopper/crew.h"

namespace stopvisor::stopper::testing {
namespace {

StopErrc refusal_of(StopMachine& machine) {
  auto stop = machine.hold();
  return stop ? StopErrc{} : stop.error().code;
}

TEST(ThreadMarks, OneThreadHoldsTwoMachinesAndLetsThemGoInAnyOrder) {
  for (const bool first_first : {true, false}) {
    Crew one(2), other(2);
    auto first = one.machine.hold();
    auto second = other.machine.hold();
    ASSERT_TRUE(first && second);
    EXPECT_EQ(refusal_of(one.machine), StopErrc::kWouldDeadlock);
    EXPECT_EQ(refusal_of(other.machine), StopErrc::kWouldDeadlock);
    Crew& let_go = first_first ? one : other;
    Crew& still_held = first_first ? other : one;
    (first_first ? first : second)->release();
    EXPECT_TRUE(let_go.machine.hold().has_value());
    EXPECT_EQ(refusal_of(still_held.machine), StopErrc::kWouldDeadlock);
    (first_first ? second : first)->release();
    EXPECT_TRUE(one.machine.hold().has_value());
    EXPECT_TRUE(other.machine.hold().has_value());
  }
}

TEST(ThreadMarks, ADetachedStopLeavesNoMark) {
  Crew crew(2);
  auto stop = crew.machine.hold();
  ASSERT_TRUE(stop);
  stop->detach();
  EXPECT_FALSE(crew.machine.thread_marked());
  std::thread([held = std::move(*stop)]() mutable { held.release(); }).join();
  EXPECT_TRUE(crew.machine.hold().has_value());
}

TEST(StopMachine, RefusesToBringBackAParticipantThatLeftForGood) {
  Crew crew(2);
  crew.finish(1);
  crew.machine.retire(1); // its thread is gone: ours stands in for it
  auto back = crew.machine.unpark(1);
  ASSERT_FALSE(back);
  EXPECT_EQ(back.error().code, StopErrc::kEnded);
  EXPECT_TRUE(crew.machine.hold().has_value()); // nobody waits for it
}

TEST(StopMachine, AThreadBoundAsTheInactiveVcpuMayStopTheOthers) {
  Crew crew(3);
  crew.finish(2);
  std::thread newcomer([&] {
    crew.machine.bind_thread(2);
    EXPECT_EQ(refusal_of(crew.machine), StopErrc::kWouldDeadlock); // as participant it may ask for nothing else
    const CpuMask itself = CpuMask::of(2);
    ASSERT_TRUE(crew.machine.hotplug().write_lock_until(kForever));
    auto outcome = crew.machine.stop_machine_from_inactive_cpu(
        2, [](StopContext& context) { return int(context.cpu) + 5; }, &itself);
    EXPECT_EQ(outcome.value_or(StopOutcome{}).result, 7);
    EXPECT_TRUE(crew.machine.unpark_cpuslocked(2));
    crew.machine.hotplug().write_unlock();
    EXPECT_EQ(crew.machine.online().count(), 3U);
    crew.machine.park(2);
    crew.machine.unbind_thread();
    EXPECT_FALSE(crew.machine.thread_marked());
  });
  newcomer.join();
}

TEST(StopMachine, DirectCallsComeOneAfterTheOther) {
  class Nobody : public Kick {
    void kick(CpuId) noexcept override {}
  } nobody;
  StopMachine machine(2, nobody);
  uint64_t plain = 0; // unsynchronised: the calls must be
  constexpr int kCalls = 2000;
  const auto call = [&] {
    for (int n = 0; n < kCalls; ++n)
      EXPECT_TRUE(machine.stop_machine([&](StopContext&) {
        plain += 1;
        return 0;
      }));
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(plain, 2U * kCalls);
}

TEST(StopOneCpu, LiftsAVcpuThatIsLateAndLowersItAgain) {
  Crew crew(2);
  crew.block(1);
  std::thread helper([&] {
    crew.await_lift(1);
    crew.unblock(1);
  });
  auto result = crew.machine.stop_one_cpu(1, [](StopContext&) { return 3; });
  helper.join();
  ASSERT_TRUE(result);
  EXPECT_EQ(*result, 3);
  EXPECT_EQ(crew.lifted(1), 0);
  EXPECT_EQ(crew.lifted(0), 0);
}

} // namespace
} // namespace stopvisor::stopper::testing
