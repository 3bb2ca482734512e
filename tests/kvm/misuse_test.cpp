// SPDX-License-Identifier: Apache-2.0
// What must not be asked of the stop machinery: each gets an error of its own, and the machinery goes on working.
#include <atomic>
#include <chrono>
#include <stdexcept>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"

namespace stopvisor::vmm::testing {
namespace {

using stopper::CpuMask;
using stopper::StopContext;
using stopper::StopErrc;

class Misuse : public KvmTest {
protected:
  void SetUp() override {
    KvmTest::SetUp();
    if (IsSkipped())
      return;
    vm_ = started(probe(3, "scenarios=ledger"));
    ASSERT_NE(vm_, nullptr);
    ASSERT_TRUE(await(*vm_, [&] { return cpus_running(*vm_) == 3; }));
  }
  // Every kind of stop works, and the guest goes on. Each test ends with it.
  void TearDown() override {
    if (vm_ == nullptr)
      return;
    const auto one = [](StopContext&) { return 1; };
    EXPECT_EQ(machine().stop_one_cpu(2, one).value_or(0), 1);
    EXPECT_EQ(machine().stop_two_cpus(0, 1, one).value_or(0), 1);
    const CpuMask all = CpuMask::first_n(3);
    for (const auto& outcome : {machine().stop_cpus(all, one), machine().stop_machine(one, &all)}) {
      ASSERT_TRUE(outcome.has_value()) << vm_->explain("stop", outcome.error()).message();
      EXPECT_EQ(outcome->nonzero.size(), 3U);
    }
    const auto shared = vm_->stops().run(one);
    ASSERT_TRUE(shared.has_value());
    EXPECT_EQ(shared->result, 1);
    for (uint32_t cpu = 0; cpu < 3; ++cpu) {
      const uint64_t before = results(*vm_, cpu).slices;
      EXPECT_TRUE(await(*vm_, [&] { return results(*vm_, cpu).slices > before; }));
    }
  }
  stopper::StopMachine& machine() { return vm_->stop_machine(); }
  void expect(const Error& error, const char* reason) {
    EXPECT_EQ(error.object, "test");
    EXPECT_EQ(error.reason, reason);
  }

  std::unique_ptr<Vm> vm_;
};

constexpr auto kNothing = [](StopContext&) { return 0; };

// Wherever the callback runs: on the caller's thread, or on a vCPU's, held or not.
TEST_F(Misuse, ACallbackThatStopsAgainIsToldThatItWouldDeadlock) {
  const CpuMask both = CpuMask::first_n(2);
  int refused = 0;
  const auto count = [&](const auto& outcome) {
    ASSERT_FALSE(outcome.has_value());
    EXPECT_EQ(outcome.error().code, StopErrc::kWouldDeadlock);
    ++refused;
  };
  const auto ask_for_everything = [&](StopContext&) {
    count(machine().stop_one_cpu(0, kNothing));
    count(machine().stop_two_cpus(0, 1, kNothing));
    count(machine().stop_cpus(both, kNothing));
    count(machine().try_stop_cpus(both, kNothing));
    count(machine().stop_machine(kNothing));
    count(machine().hold());
    count(machine().hold({}, &both));
    count(vm_->stops().run(kNothing));
    count(vm_->stops().acquire_hold());
    return 0;
  };
  EXPECT_TRUE(vm_->stops().run(ask_for_everything).has_value());
  EXPECT_TRUE(machine().stop_machine(ask_for_everything).has_value());
  EXPECT_TRUE(machine().stop_one_cpu(1, ask_for_everything).has_value());
  EXPECT_TRUE(machine().stop_two_cpus(1, 2, ask_for_everything).has_value());
  EXPECT_TRUE(machine().stop_cpus(CpuMask::of(0), ask_for_everything).has_value());
  EXPECT_EQ(refused, 5 * 9);
  EXPECT_EQ(vm_->stops().holds(), 0U);
  expect(vm_->explain("stop", {StopErrc::kWouldDeadlock}), "a stop from inside a stop would deadlock");
}

TEST_F(Misuse, AnUnknownVcpuIsNamedAsSuch) {
  const CpuMask far = CpuMask::of(900);
  const auto is_unknown = [](const auto& outcome) {
    return !outcome.has_value() && outcome.error().code == StopErrc::kNoSuchCpu;
  };
  for (const stopper::CpuId cpu : {700U, stopper::kMaxCpus - 1, stopper::kMaxCpus, ~0U}) {
    EXPECT_TRUE(is_unknown(machine().stop_one_cpu(cpu, kNothing))) << cpu;
    EXPECT_TRUE(is_unknown(machine().stop_two_cpus(cpu, 0, kNothing))) << cpu;
    EXPECT_TRUE(is_unknown(machine().stop_two_cpus(0, cpu, kNothing))) << cpu;
  }
  // The worker's number is none of a vCPU.
  EXPECT_TRUE(is_unknown(machine().stop_two_cpus(0, machine().first_worker(), kNothing)));
  EXPECT_TRUE(is_unknown(machine().stop_cpus(far, kNothing)));
  EXPECT_TRUE(is_unknown(machine().try_stop_cpus(far, kNothing)));
  EXPECT_TRUE(is_unknown(machine().stop_machine(kNothing, &far)));
  EXPECT_TRUE(is_unknown(machine().hold({}, &far)));
  expect(vm_->explain("stop", {StopErrc::kNoSuchCpu}), "no such vCPU online");
}

TEST_F(Misuse, AnEmptyMaskIsNamedAsSuch) {
  const CpuMask none;
  const auto is_empty = [](const auto& outcome) {
    return !outcome.has_value() && outcome.error().code == StopErrc::kEmptyMask;
  };
  EXPECT_TRUE(is_empty(machine().stop_cpus(none, kNothing)));
  EXPECT_TRUE(is_empty(machine().try_stop_cpus(none, kNothing)));
  EXPECT_TRUE(is_empty(machine().stop_machine(kNothing, &none)));
  EXPECT_TRUE(is_empty(machine().hold({}, &none)));
  const auto twice = machine().stop_two_cpus(1, 1, kNothing);
  ASSERT_FALSE(twice.has_value());
  EXPECT_EQ(twice.error().code, StopErrc::kSameCpu);
  expect(vm_->explain("stop", {StopErrc::kEmptyMask}), "no vCPU was named");
}

stopper::Invocation count_up(void* arg, stopper::CpuId cpu) noexcept {
  auto& counter = *static_cast<std::atomic<uint32_t>*>(arg);
  counter.fetch_add(1 + cpu, std::memory_order_release); // pairs with the test's load
  counter.notify_all();
  return {0, false};
}

TEST_F(Misuse, AWorkThatIsStillQueuedIsNotQueuedAgain) {
  std::atomic<uint32_t> counter{0};
  stopper::StopMachine::Work work;
  {
    auto stop = machine().hold();
    ASSERT_TRUE(stop.has_value());
    EXPECT_TRUE(machine().stop_one_cpu_nowait(1, &count_up, &counter, work).has_value());
    for (const stopper::CpuId cpu : {1U, 2U}) { // nor anywhere else
      const auto again = machine().stop_one_cpu_nowait(cpu, &count_up, &counter, work);
      ASSERT_FALSE(again.has_value());
      EXPECT_EQ(again.error().code, StopErrc::kWorkInUse);
      EXPECT_EQ(vm_->explain("stop", again.error()).status, Status::kBusy);
    }
    EXPECT_EQ(counter.load(std::memory_order_acquire), 0U);
  }
  counter.wait(0, std::memory_order_acquire);
  EXPECT_EQ(counter.load(std::memory_order_acquire), 2U); // once, on vCPU 1
  EXPECT_TRUE(machine().stop_one_cpu_nowait(2, &count_up, &counter, work).has_value());
  counter.wait(2, std::memory_order_acquire);
  EXPECT_EQ(counter.load(std::memory_order_acquire), 5U);
}

TEST_F(Misuse, ACallbackThatThrowsIsAnErrorOfItsCallerAlone) {
  const auto throws = [](StopContext&) -> int { throw std::runtime_error("not for the stopper"); };
  const CpuMask all = CpuMask::first_n(3);
  const auto threw = [](const auto& outcome) {
    return !outcome.has_value() && outcome.error().code == StopErrc::kCallbackThrew;
  };
  EXPECT_TRUE(threw(machine().stop_one_cpu(0, throws)));
  EXPECT_TRUE(threw(machine().stop_two_cpus(0, 2, throws)));
  EXPECT_TRUE(threw(machine().stop_cpus(all, throws)));
  EXPECT_TRUE(threw(machine().try_stop_cpus(all, throws)));
  EXPECT_TRUE(threw(machine().stop_machine(throws)));
  EXPECT_TRUE(threw(machine().stop_machine(throws, &all)));
  EXPECT_TRUE(threw(vm_->stops().run(throws)));
  ASSERT_TRUE(vm_->stops().acquire_hold().has_value());
  EXPECT_TRUE(threw(vm_->stops().run(throws))); // under a hold, which stays
  EXPECT_EQ(vm_->stops().holds(), 1U);
  EXPECT_TRUE(vm_->stops().release_hold());
  EXPECT_FALSE(vm_->stops().release_hold()); // once too often
  expect(vm_->explain("stop", {StopErrc::kCallbackThrew}), "the callback threw an exception");
}

} // namespace
} // namespace stopvisor::vmm::testing
