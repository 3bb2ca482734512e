// SPDX-License-Identifier: Apache-2.0
#include "vmm/job_slots.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

namespace stopvisor::vmm {
namespace {

constexpr uint32_t kSlots = 128;

TEST(JobSlots, KeepOnlyTheNewestNumberOfEach) {
  JobSlots<kSlots> jobs;
  EXPECT_TRUE(jobs.put(70, 1));
  EXPECT_FALSE(jobs.put(70, 2)); // the taker was told
  const auto job = jobs.take();
  ASSERT_TRUE(job.has_value());
  EXPECT_EQ(job->slot, 70U);
  EXPECT_EQ(job->number, 2U);
  EXPECT_FALSE(jobs.take().has_value());
  EXPECT_TRUE(jobs.put(70, 3));
}

TEST(JobSlots, AreServedInTurn) {
  JobSlots<kSlots> jobs;
  for (const uint32_t slot : {5U, 64U, 127U})
    EXPECT_TRUE(jobs.put(slot, slot));
  for (const uint32_t slot : {5U, 64U, 127U, 5U, 64U, 127U}) {
    const auto job = jobs.take();
    ASSERT_TRUE(job.has_value());
    EXPECT_EQ(job->slot, slot);
    EXPECT_TRUE(jobs.put(slot, slot)); // rings again at once: the others come first
  }
}

TEST(JobSlots, ForgetWhatIsDropped) {
  JobSlots<kSlots> jobs;
  EXPECT_TRUE(jobs.put(0, 1));
  EXPECT_TRUE(jobs.put(100, 1));
  jobs.drop();
  EXPECT_FALSE(jobs.take().has_value());
  EXPECT_TRUE(jobs.put(0, 2));
}

// Whoever is told to wake the taker, and the last number of each slot, are never lost.
TEST(JobSlots, LoseNothingBetweenThreads) {
  constexpr uint64_t kLast = 20'000;
  constexpr uint32_t kRingers = 3;
  JobSlots<kSlots> jobs;
  std::atomic<uint32_t> calls{0};
  std::vector<std::thread> ringers;
  for (uint32_t ringer = 0; ringer < kRingers; ++ringer)
    ringers.emplace_back([&, ringer] {
      for (uint64_t number = 1; number <= kLast; ++number)
        if (jobs.put(ringer * 60, number)) {
          calls.fetch_add(1, std::memory_order_release); // pairs with the load below
          calls.notify_one();
        }
    });
  std::array<uint64_t, kRingers> seen{};
  while (seen != std::array<uint64_t, kRingers>{kLast, kLast, kLast}) {
    const uint32_t before = calls.load(std::memory_order_acquire);
    const auto job = jobs.take();
    if (!job) {
      calls.wait(before, std::memory_order_acquire); // for ever, where a call was lost
      continue;
    }
    EXPECT_GE(job->number, seen[job->slot / 60]);
    seen[job->slot / 60] = job->number;
  }
  for (std::thread& ringer : ringers)
    ringer.join();
}

} // namespace
} // namespace stopvisor::vmm
