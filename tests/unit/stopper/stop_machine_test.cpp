// SPDX-License-Identifier: Apache-2.0
// The stop family on real threads: what each call promises, and each way it refuses.
#include "stopper/native.h"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>

#include "tests/unit/stopper/crew.h"

namespace stopvisor::stopper {
namespace {

using testing::Crew;

StopOptions within(std::chrono::milliseconds time) {
  return {.deadline = Clock::now() + time};
}
// For stops that must fail: long enough that only who is blocked is late, on a busy host too. Others have no limit.
constexpr std::chrono::milliseconds kShort{400};

TEST(StopMachine, HoldsEveryVcpuWhileTheStopLives) {
  Crew crew(4);
  for (int round = 0; round < 50; ++round) {
    auto stop = crew.machine.hold();
    ASSERT_TRUE(stop.has_value());
    std::vector<uint64_t> before = crew.memory; // plain reads: ThreadSanitizer watches
    for (uint64_t& word : crew.memory)
      word += 1;
    for (size_t i = 0; i < before.size(); ++i)
      ASSERT_EQ(crew.memory[i], before[i] + 1);
  }
}

TEST(StopMachine, LetsEverybodyGoWhenTheStopIsReleased) {
  Crew crew(3);
  {
    auto stop = crew.machine.hold();
    ASSERT_TRUE(stop.has_value());
  }
  for (CpuId cpu = 0; cpu < 3; ++cpu) {
    EXPECT_TRUE(crew.machine.stop_one_cpu(cpu, [](StopContext&) { return 0; }).has_value());
  }
}

TEST(StopMachine, RunsTheCallbackOnTheFirstOnlineVcpuByDefault) {
  Crew crew(3);
  crew.finish(0);
  CpuId ran_on = kMaxCpus;
  auto outcome = crew.machine.stop_machine([&](StopContext& context) {
    ran_on = context.cpu;
    return 0;
  });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(ran_on, 1u);
}

TEST(StopMachine, RunsTheCallbackOnExactlyTheActiveVcpus) {
  Crew crew(5);
  std::atomic<uint32_t> ran{0};
  CpuMask active;
  active.set(1);
  active.set(4);
  auto outcome = crew.machine.stop_machine(
      [&](StopContext& context) {
        ran.fetch_or(1u << context.cpu, std::memory_order_relaxed);
        return static_cast<int>(context.cpu) * 10;
      },
      &active);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(ran.load(std::memory_order_relaxed), 0b10010u);
  EXPECT_EQ(outcome->nonzero, (std::vector<std::pair<CpuId, int>>{{1, 10}, {4, 40}}));
  EXPECT_TRUE(outcome->result == 10 || outcome->result == 40);
}

TEST(StopMachine, CallsDirectlyBeforeAnybodyIsOnline) {
  Crew crew(0);
  bool ran = false;
  auto outcome = crew.machine.stop_machine([&](StopContext& context) {
    ran = true;
    EXPECT_EQ(context.cpu, kMaxCpus);
    return 3;
  });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_TRUE(ran);
  EXPECT_EQ(outcome->result, 3);
}

TEST(StopMachine, NamesTheStragglerAtTheDeadlineAndStopsAgainLater) {
  Crew crew(4);
  crew.block(2);
  bool ran = false;
  auto failed = crew.machine.stop_machine(
      [&](StopContext&) {
        ran = true;
        return 0;
      },
      nullptr, within(kShort));
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code, StopErrc::kDeadline);
  EXPECT_EQ(failed.error().stragglers, CpuMask::of(2));
  EXPECT_FALSE(ran);
  EXPECT_TRUE(crew.machine.stop_one_cpu(0, [](StopContext&) { return 0; }).has_value()); // the others go on
  const StopReport report = crew.machine.last_report();
  EXPECT_EQ(report.end, StopEnd::kAborted);
  EXPECT_EQ(report.stragglers, CpuMask::of(2));
  crew.unblock(2);
  EXPECT_TRUE(crew.machine.hold().has_value());
}

TEST(StopMachine, SurvivesADroppedKick) {
  Crew crew(2);
  for (int round = 0; round < 3; ++round) {
    crew.drop_kicks(1, 1);
    auto stop = crew.machine.hold();
    ASSERT_TRUE(stop.has_value());
  }
}

TEST(StopMachine, LiftsWhoeverIsLateAndLowersThemAgain) {
  Crew crew(3);
  crew.block(1);
  std::thread waker([&] {
    crew.await_lift(1); // the stop is under way, and has noticed
    crew.unblock(1);
  });
  auto stop = crew.machine.hold();
  waker.join();
  ASSERT_TRUE(stop.has_value());
  EXPECT_EQ(crew.lifted(1), 1);
  stop->release();
  EXPECT_EQ(crew.lifted(1), 0);
  const StopReport report = crew.machine.last_report();
  EXPECT_FALSE(report.lift_refused);
  for (const ParticipantReport& participant : report.participants)
    EXPECT_TRUE(participant.lifted || participant.cpu != 1);
}

TEST(StopMachine, LowersWhoeverWasLiftedWhenItGivesUp) {
  Crew crew(2);
  crew.block(1);
  ASSERT_FALSE(crew.machine.hold(within(kShort)).has_value());
  EXPECT_EQ(crew.lifted(1), 0);
  crew.unblock(1);
}

TEST(StopMachine, ReportsThatItMayNotLift) {
  Crew crew(2);
  crew.may_lift.store(false, std::memory_order_relaxed);
  crew.block(1);
  ASSERT_FALSE(crew.machine.hold(within(kShort)).has_value());
  EXPECT_TRUE(crew.machine.last_report().lift_refused);
  crew.unblock(1);
}

TEST(StopMachine, ReportsTheTimelineOfEachParticipant) {
  Crew crew(3, 1);
  crew.machine.hold()->release();
  const StopReport report = crew.machine.last_report();
  EXPECT_EQ(report.sequence, 1u);
  EXPECT_EQ(report.end, StopEnd::kCompleted);
  ASSERT_EQ(report.participants.size(), 4u);
  EXPECT_LE(report.requested_ns, report.begun_ns);
  EXPECT_LE(report.all_held_ns, report.exit_ns);
  EXPECT_LE(report.exit_ns, report.left_ns);
  EXPECT_GT(report.hold_ns(), 0);
  for (const ParticipantReport& participant : report.participants) {
    EXPECT_EQ(participant.worker, participant.cpu == 3);
    EXPECT_EQ(participant.activity, 7u);
    EXPECT_LE(report.begun_ns, participant.kicked_ns);
    EXPECT_LE(participant.out_ns, participant.held_ns);
    EXPECT_LE(participant.held_ns, report.all_held_ns);
    EXPECT_LE(report.exit_ns, participant.released_ns);
    EXPECT_LE(participant.released_ns, report.left_ns);
  }
}

TEST(StopMachine, HoldsWorkersAfterVcpusAndReleasesThemFirst) {
  Crew crew(2, 2);
  for (int round = 0; round < 20; ++round) {
    crew.machine.hold()->release();
    const StopReport report = crew.machine.last_report();
    int64_t vcpus_held = 0, vcpus_released = INT64_MAX;
    for (const ParticipantReport& participant : report.participants)
      if (!participant.worker) {
        vcpus_held = std::max(vcpus_held, participant.held_ns);
        vcpus_released = std::min(vcpus_released, participant.released_ns);
      }
    for (const ParticipantReport& participant : report.participants)
      if (participant.worker) {
        EXPECT_LE(vcpus_held, participant.held_ns);
        EXPECT_LE(participant.released_ns, vcpus_released);
      }
  }
}

// Plain reads and writes of what the workers write when they are rung for: ThreadSanitizer watches.
TEST(StopMachine, PassesByWorkersAtRestAndHoldsThoseThatRise) {
  Crew crew(1, 2, true);
  std::atomic<bool> enough{false};
  std::thread ringer([&] {
    while (!enough.load(std::memory_order_acquire)) { // pairs with the store below
      crew.ring(1);
      crew.ring(2);
      std::this_thread::yield();
    }
  });
  for (int round = 0; round < 300; ++round) {
    auto stop = crew.machine.hold();
    ASSERT_TRUE(stop.has_value());
    const std::vector<uint64_t> before = crew.memory;
    for (uint64_t& word : crew.memory)
      word += 1;
    for (size_t i = 0; i < before.size(); ++i)
      ASSERT_EQ(crew.memory[i], before[i] + 1);
  }
  enough.store(true, std::memory_order_release);
  ringer.join();
  bool passed_by = false;
  while (!passed_by) { // as soon as both have come to rest
    crew.machine.hold()->release();
    const StopReport report = crew.machine.last_report();
    ASSERT_EQ(report.participants.size(), 3U);
    passed_by = report.participants[1].kicked_ns == 0 && report.participants[2].kicked_ns == 0;
    EXPECT_GT(report.participants[1].held_ns, 0);
    EXPECT_GE(report.participants[1].released_ns, report.exit_ns);
  }
}

TEST(StopMachine, AbortsWhenAWorkerDoesNotComeToRest) {
  Crew crew(2, 2);
  crew.block(3);
  auto failed = crew.machine.hold(within(kShort));
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code, StopErrc::kDeadline);
  EXPECT_EQ(failed.error().stragglers, CpuMask::of(3));
  crew.unblock(3);
  EXPECT_TRUE(crew.machine.hold().has_value());
}

TEST(StopMachine, PartialStopLeavesTheOthersRunning) {
  Crew crew(4);
  CpuMask two;
  two.set(1);
  two.set(3);
  auto stop = crew.machine.hold({}, &two);
  ASSERT_TRUE(stop.has_value());
  const uint64_t held = crew.entries(1);
  // The others are in HLT between kicks; a work of their own shows that they are free.
  EXPECT_TRUE(crew.machine.thread_marked());
  stop->detach();
  EXPECT_EQ(crew.machine.stop_one_cpu(0, [](StopContext&) { return 11; }).value(), 11);
  EXPECT_EQ(crew.machine.stop_one_cpu(2, [](StopContext&) { return 12; }).value(), 12);
  auto blocked = crew.machine.stop_one_cpu(1, [](StopContext&) { return 0; }, within(kShort));
  ASSERT_FALSE(blocked.has_value());
  EXPECT_EQ(blocked.error().code, StopErrc::kDeadline);
  EXPECT_EQ(crew.entries(1), held);
}

TEST(StopMachine, RefusesToStopFromInsideAStop) {
  Crew crew(2);
  auto outcome = crew.machine.stop_machine([&](StopContext&) {
    auto inner = crew.machine.stop_one_cpu(1, [](StopContext&) { return 0; });
    return !inner && inner.error().code == StopErrc::kWouldDeadlock ? 1 : 2;
  });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->result, 1);
  auto stop = crew.machine.hold();
  auto second = crew.machine.hold();
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code, StopErrc::kWouldDeadlock);
}

TEST(StopMachine, TurnsAThrowingCallbackIntoAnError) {
  Crew crew(2);
  auto outcome = crew.machine.stop_machine([](StopContext&) -> int { throw std::runtime_error("no"); });
  ASSERT_FALSE(outcome.has_value());
  EXPECT_EQ(outcome.error().code, StopErrc::kCallbackThrew);
  auto one = crew.machine.stop_one_cpu(0, [](StopContext&) -> int { throw 1; });
  ASSERT_FALSE(one.has_value());
  EXPECT_EQ(one.error().code, StopErrc::kCallbackThrew);
  EXPECT_TRUE(crew.machine.hold().has_value());
}

TEST(StopMachine, RefusesUnknownOfflineAndEmpty) {
  Crew crew(3);
  crew.finish(1);
  const auto nothing = [](StopContext&) { return 0; };
  EXPECT_EQ(crew.machine.stop_one_cpu(1, nothing).error().code, StopErrc::kNoSuchCpu);
  EXPECT_EQ(crew.machine.stop_one_cpu(99, nothing).error().code, StopErrc::kNoSuchCpu);
  EXPECT_EQ(crew.machine.stop_cpus(CpuMask{}, nothing).error().code, StopErrc::kEmptyMask);
  EXPECT_EQ(crew.machine.stop_cpus(CpuMask::of(1), nothing).error().code, StopErrc::kNoSuchCpu);
  EXPECT_EQ(crew.machine.stop_two_cpus(0, 0, nothing).error().code, StopErrc::kSameCpu);
  EXPECT_EQ(crew.machine.stop_two_cpus(0, 1, nothing).error().code, StopErrc::kNoSuchCpu);
  const CpuMask none;
  EXPECT_EQ(crew.machine.hold({}, &none).error().code, StopErrc::kEmptyMask);
  const CpuMask offline = CpuMask::of(1);
  EXPECT_EQ(crew.machine.hold({}, &offline).error().code, StopErrc::kNoSuchCpu);
  EXPECT_EQ(crew.machine.stop_machine(nothing, &offline).error().code, StopErrc::kNoSuchCpu);
  crew.machine.close();
  EXPECT_EQ(crew.machine.hold().error().code, StopErrc::kEnded);
}

TEST(StopCpus, RunsOnEachOnlineVcpuAndCompletesOfflineOnesAtOnce) {
  Crew crew(4);
  crew.finish(2);
  std::atomic<uint32_t> ran{0};
  auto outcome = crew.machine.stop_cpus(CpuMask::first_n(4), [&](StopContext& context) {
    ran.fetch_or(1u << context.cpu, std::memory_order_relaxed);
    return context.cpu == 3 ? -5 : 0;
  });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(ran.load(std::memory_order_relaxed), 0b1011u);
  EXPECT_EQ(outcome->result, -5);
  EXPECT_EQ(outcome->nonzero, (std::vector<std::pair<CpuId, int>>{{3, -5}}));
}

TEST(StopCpus, TryIsBusyWhileAWideStopGoesOn) {
  Crew crew(2);
  auto stop = crew.machine.hold();
  stop->detach();
  EXPECT_EQ(crew.machine.try_stop_cpus(CpuMask::of(0), [](StopContext&) { return 0; }).error().code,
            StopErrc::kBusy);
  stop->release();
  EXPECT_TRUE(crew.machine.try_stop_cpus(CpuMask::of(0), [](StopContext&) { return 0; }).has_value());
}

TEST(StopCpus, TakesBackWhatDidNotBeginByTheDeadline) {
  Crew crew(3);
  crew.block(1);
  std::atomic<uint32_t> ran{0};
  auto outcome = crew.machine.stop_cpus(
      CpuMask::first_n(3),
      [&](StopContext& context) {
        ran.fetch_or(1u << context.cpu, std::memory_order_relaxed);
        return 0;
      },
      within(kShort));
  ASSERT_FALSE(outcome.has_value());
  EXPECT_EQ(outcome.error().code, StopErrc::kDeadline);
  EXPECT_EQ(outcome.error().stragglers, CpuMask::of(1));
  crew.unblock(1);
  EXPECT_TRUE(crew.machine.stop_one_cpu(1, [](StopContext&) { return 0; }).has_value());
  EXPECT_EQ(ran.load(std::memory_order_relaxed), 0b101u); // the work taken back never ran
}

TEST(StopTwoCpus, RunsOnTheFirstNamedWhileTheOtherIsHeld) {
  Crew crew(3);
  CpuId ran_on = kMaxCpus;
  auto result = crew.machine.stop_two_cpus(2, 0, [&](StopContext& context) {
    ran_on = context.cpu;
    crew.memory[0] += 1; // vCPU 0 is held
    return 9;
  });
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(*result, 9);
  EXPECT_EQ(ran_on, 2u);
}

TEST(StopTwoCpus, NeverDeadlocksAgainstWideStops) {
  Crew crew(4);
  std::vector<std::thread> clients;
  for (CpuId n = 0; n < 3; ++n)
    clients.emplace_back([&, n] {
      for (int round = 0; round < 100; ++round) {
        if (n == 0)
          EXPECT_TRUE(crew.machine.hold().has_value());
        else
          EXPECT_TRUE(crew.machine.stop_two_cpus(n, (n + 1) % 4, [](StopContext&) { return 0; }).has_value());
      }
    });
  for (std::thread& client : clients)
    client.join();
}

Invocation count_up(void* arg, CpuId /*cpu*/) noexcept {
  auto& counter = *static_cast<std::atomic<int>*>(arg);
  counter.fetch_add(1, std::memory_order_release);
  counter.notify_all();
  return {0, false};
}

TEST(StopOneCpuNowait, RunsLaterAndRefusesAWorkStillQueued) {
  Crew crew(2);
  std::atomic<int> counter{0};
  Work work;
  {
    auto stop = crew.machine.hold();
    ASSERT_TRUE(crew.machine.stop_one_cpu_nowait(1, &count_up, &counter, work).has_value());
    EXPECT_EQ(crew.machine.stop_one_cpu_nowait(1, &count_up, &counter, work).error().code, StopErrc::kWorkInUse);
    EXPECT_EQ(counter.load(std::memory_order_acquire), 0);
  }
  counter.wait(0, std::memory_order_acquire);
  EXPECT_EQ(counter.load(std::memory_order_acquire), 1);
  EXPECT_EQ(crew.machine.stop_one_cpu_nowait(7, &count_up, &counter, work).error().code, StopErrc::kNoSuchCpu);
}

TEST(Hotplug, BringingAVcpuOnlineWaitsForTheStop) {
  Crew crew(2);
  crew.finish(1);
  auto stop = crew.machine.hold();
  stop->detach();
  EXPECT_EQ(crew.machine.unpark(1, Clock::now() + kShort).error().code, StopErrc::kDeadline);
  stop->release();
  crew.start(1);
  EXPECT_TRUE(crew.machine.online().test(1));
}

TEST(Hotplug, StopsRaceWithVcpusThatComeAndGo) {
  Crew crew(4);
  std::atomic<bool> over{false};
  std::thread hotplug([&] {
    for (int round = 0; round < 60; ++round) {
      crew.finish(1 + round % 3);
      crew.start(1 + round % 3);
    }
    over.store(true, std::memory_order_release);
  });
  while (!over.load(std::memory_order_acquire)) {
    auto stop = crew.machine.hold();
    ASSERT_TRUE(stop.has_value());
    for (uint64_t& word : crew.memory)
      word += 1;
  }
  hotplug.join();
}

TEST(StopMachineFromInactiveCpu, TakesPartAndRunsTheCallbackItself) {
  Crew crew(3);
  crew.finish(2);
  ASSERT_TRUE(crew.machine.hotplug().write_lock_until(kForever));
  std::atomic<uint32_t> ran{0};
  CpuMask active = CpuMask::of(2);
  active.set(0);
  auto outcome = crew.machine.stop_machine_from_inactive_cpu(
      2,
      [&](StopContext& context) {
        ran.fetch_or(1u << context.cpu, std::memory_order_relaxed);
        return 0;
      },
      &active);
  EXPECT_EQ(crew.machine.stop_machine_from_inactive_cpu(1, [](StopContext&) { return 0; }).error().code,
            StopErrc::kNoSuchCpu); // it is active
  crew.machine.hotplug().write_unlock();
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(ran.load(std::memory_order_relaxed), 0b101u);
}

} // namespace
} // namespace stopvisor::stopper
