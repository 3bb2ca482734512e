// SPDX-License-Identifier: Apache-2.0
// Stops of a few vCPUs: these stand still, all others go on, as their own counters show.
#include <array>
#include <vector>

#include "tests/kvm/kvm_fixture.h"

namespace stopvisor::vmm::testing {
namespace {

using PartialStop = KvmTest;

TEST_F(PartialStop, OfTwoOf32LeavesTheOther30Running) {
  constexpr uint32_t kCpus = 32;
  const auto vm = started(probe(kCpus, "scenarios=ledger"));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == kCpus; }));
  const auto slices = [&](uint32_t cpu) { return results(*vm, cpu).slices; };
  for (const auto& held : {std::array<uint32_t, 2>{0, 31}, {5, 17}, {30, 29}}) {
    stopper::CpuMask mask;
    for (const uint32_t cpu : held)
      mask.set(cpu);
    auto stop = vm->stop_machine().hold({}, &mask);
    ASSERT_TRUE(stop.has_value()) << vm->explain("stop", stop.error()).message();
    std::array<uint64_t, kCpus> before{};
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
      before[cpu] = slices(cpu);
    for (uint32_t cpu = 0; cpu < kCpus; ++cpu)
      if (!mask.test(cpu)) {
        ASSERT_TRUE(await(*vm, [&] { return slices(cpu) > before[cpu] + 1; })) << "vCPU " << cpu;
      }
    for (const uint32_t cpu : held)
      EXPECT_EQ(slices(cpu), before[cpu]) << "vCPU " << cpu;
    const auto report = stop->report();
    ASSERT_EQ(report.participants.size(), 2U);
    for (const auto& participant : report.participants)
      EXPECT_TRUE(mask.test(participant.cpu)) << participant.cpu;
    stop->release();
    for (const uint32_t cpu : held)
      ASSERT_TRUE(await(*vm, [&] { return slices(cpu) > before[cpu] + 1; })) << "vCPU " << cpu;
  }
}

// The others make requests, and their device serves them: only a full stop holds workers.
TEST_F(PartialStop, LeavesDeviceWorkersRunning) {
  const auto vm = started(probe(2, "scenarios=io"));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 2 && results(*vm, 1).mail_seen != 0; }));
  const stopper::CpuMask mask = stopper::CpuMask::of(0);
  auto stop = vm->stop_machine().hold({}, &mask);
  ASSERT_TRUE(stop.has_value());
  const uint64_t before = results(*vm, 1).mail_seen;
  EXPECT_TRUE(await(*vm, [&] { return results(*vm, 1).mail_seen > before + 10; }));
}

TEST_F(PartialStop, OfTwoRunsTheCallbackOnTheFirstWhileTheOtherIsHeld) {
  const auto vm = started(probe(4, "scenarios=ledger"));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 4; }));
  for (int turn = 0; turn < 50; ++turn) {
    const auto stop = vm->stop_machine().stop_two_cpus(2, 1, [&](stopper::StopContext& context) {
      EXPECT_EQ(context.cpu, 2U);
      const uint64_t held = results(*vm, 1).slices;
      const uint64_t other = results(*vm, 3).slices;
      EXPECT_TRUE(await(*vm, [&] { return results(*vm, 3).slices > other; }));
      EXPECT_EQ(results(*vm, 1).slices, held);
      return 7;
    });
    ASSERT_TRUE(stop.has_value());
    EXPECT_EQ(*stop, 7);
  }
}

} // namespace
} // namespace stopvisor::vmm::testing
