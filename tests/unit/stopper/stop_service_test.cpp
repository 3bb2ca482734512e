// SPDX-License-Identifier: Apache-2.0
// Shared stops: callbacks that run together, holds that are counted.
#include "stopper/native.h"

#include <gtest/gtest.h>

#include "tests/unit/stopper/crew.h"

namespace stopvisor::stopper {
namespace {

using testing::Crew;

struct ServedCrew : Crew {
  using Crew::Crew;
  StopService service{machine};
};

TEST(StopService, RunsTheCallbackWhileEverybodyIsHeld) {
  ServedCrew crew(3);
  auto outcome = crew.service.run([&](StopContext&) {
    for (uint64_t& word : crew.memory)
      word += 1;
    return 42;
  });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->result, 42);
}

TEST(StopService, KeepsTheGuestHeldUntilTheLastHoldIsGivenBack) {
  ServedCrew crew(2);
  ASSERT_TRUE(crew.service.acquire_hold().has_value());
  ASSERT_TRUE(crew.service.acquire_hold().has_value());
  EXPECT_EQ(crew.service.holds(), 2u);
  EXPECT_TRUE(crew.service.release_hold());
  const uint64_t before = crew.memory[0]; // still held: a plain read
  EXPECT_EQ(crew.machine.try_stop_cpus(CpuMask::of(0), [](StopContext&) { return 0; }).error().code,
            StopErrc::kBusy);
  EXPECT_EQ(crew.memory[0], before);
  EXPECT_TRUE(crew.service.release_hold());
  EXPECT_FALSE(crew.service.release_hold());
  EXPECT_TRUE(crew.machine.stop_one_cpu(0, [](StopContext&) { return 0; }).has_value());
}

TEST(StopService, RunsCallbacksUnderAHoldWithoutAFurtherStop) {
  ServedCrew crew(2);
  const auto held = crew.service.acquire_hold();
  ASSERT_TRUE(held.has_value());
  for (int n = 0; n < 3; ++n) {
    auto outcome = crew.service.run([n](StopContext&) { return n; });
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->result, n);
    EXPECT_EQ(outcome->sequence, held->sequence);
  }
  crew.service.release_hold();
}

TEST(StopService, SharesOneStopAmongThoseWhoComeWhileItIsGathered) {
  ServedCrew crew(2);
  crew.block(1); // the first stop cannot be gathered until all clients are queued
  constexpr int kClients = 16;
  std::atomic<uint64_t> lowest{UINT64_MAX}, highest{0};
  std::vector<std::thread> clients;
  for (int n = 0; n < kClients; ++n)
    clients.emplace_back([&] {
      auto outcome = crew.service.run([](StopContext&) { return 0; }, {.budget = std::chrono::seconds(10)});
      ASSERT_TRUE(outcome.has_value());
      uint64_t seen = lowest.load(std::memory_order_relaxed);
      while (outcome->sequence < seen &&
             !lowest.compare_exchange_weak(seen, outcome->sequence, std::memory_order_relaxed)) {
      }
      seen = highest.load(std::memory_order_relaxed);
      while (outcome->sequence > seen &&
             !highest.compare_exchange_weak(seen, outcome->sequence, std::memory_order_relaxed)) {
      }
    });
  while (crew.service.waiting() < kClients)
    std::this_thread::yield();
  crew.unblock(1);
  for (std::thread& client : clients)
    client.join();
  EXPECT_EQ(lowest.load(std::memory_order_relaxed), highest.load(std::memory_order_relaxed));
  EXPECT_EQ(crew.machine.last_report().shared, static_cast<uint32_t>(kClients));
}

TEST(StopService, GivesEachCallbackItsOwnResult) {
  ServedCrew crew(3);
  std::vector<std::thread> clients;
  uint64_t sum = 0; // written under stops alone
  for (int n = 0; n < 8; ++n)
    clients.emplace_back([&, n] {
      for (int round = 0; round < 50; ++round) {
        auto outcome = crew.service.run([&](StopContext&) -> int {
          sum += 1;
          if (n == 7)
            throw n;
          return n;
        });
        if (n == 7) {
          ASSERT_FALSE(outcome.has_value());
          EXPECT_EQ(outcome.error().code, StopErrc::kCallbackThrew);
        } else {
          ASSERT_TRUE(outcome.has_value());
          EXPECT_EQ(outcome->result, n);
        }
      }
    });
  for (std::thread& client : clients)
    client.join();
  crew.service
      .run([&](StopContext&) {
        EXPECT_EQ(sum, 400u);
        return 0;
      })
      .value();
}

TEST(StopService, FailsTheOneWhoseDeadlinePassedAndServesTheOthers) {
  ServedCrew crew(2);
  crew.block(0);
  std::thread patient([&] { EXPECT_TRUE(crew.service.run([](StopContext&) { return 0; }).has_value()); });
  while (crew.service.waiting() < 1)
    std::this_thread::yield();
  bool ran = false;
  auto hasty = crew.service.run(
      [&](StopContext&) {
        ran = true;
        return 0;
      },
      {.deadline = Clock::now() + std::chrono::milliseconds(400)});
  ASSERT_FALSE(hasty.has_value());
  EXPECT_EQ(hasty.error().code, StopErrc::kDeadline);
  EXPECT_FALSE(ran);
  crew.unblock(0);
  patient.join();
}

TEST(StopService, PassesTheLeadOnWhenTheLeaderGivesUp) {
  ServedCrew crew(2);
  crew.block(0);
  std::thread hasty([&] {
    auto outcome = crew.service.run([](StopContext&) { return 0; },
                                    {.deadline = Clock::now() + std::chrono::milliseconds(400)});
    ASSERT_FALSE(outcome.has_value());
    EXPECT_EQ(outcome.error().stragglers, CpuMask::of(0));
  });
  while (crew.service.waiting() < 1)
    std::this_thread::yield();
  std::thread patient([&] { EXPECT_TRUE(crew.service.run([](StopContext&) { return 0; }).has_value()); });
  hasty.join();
  crew.unblock(0);
  patient.join();
}

TEST(StopService, RefusesToBeCalledFromACallback) {
  ServedCrew crew(2);
  auto outcome = crew.service.run([&](StopContext&) {
    auto inner = crew.service.run([](StopContext&) { return 0; });
    return !inner && inner.error().code == StopErrc::kWouldDeadlock ? 1 : 2;
  });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->result, 1);
}

TEST(StopService, ClosingLetsEverybodyGo) {
  ServedCrew crew(2);
  ASSERT_TRUE(crew.service.acquire_hold().has_value());
  crew.service.close();
  EXPECT_EQ(crew.service.holds(), 0u);
  EXPECT_EQ(crew.service.run([](StopContext&) { return 0; }).error().code, StopErrc::kEnded);
} // the crew's threads join: nobody is held

} // namespace
} // namespace stopvisor::stopper
