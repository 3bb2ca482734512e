// SPDX-License-Identifier: Apache-2.0
// Kicks that land at every step of the vCPU loop, late kicks, lost kicks, and a vCPU that cannot come.
//
// In the races, a vCPU thread is stopped by a hook at the step of interest, a stop is asked for, its one signal is
// sent, and only then is the thread let on. Further signals (the stopper kicks again after a while) are dropped:
// were the one signal lost, the stop would fail at its deadline.
#include <array>
#include <chrono>
#include <future>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "tests/kvm/snare.h"

namespace stopvisor::vmm::testing {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kBellFlag = 0x20'0000;  // the host sets it: ring the doorbell once
constexpr uint64_t kBellCount = 0x20'0004; // how often that was done
constexpr uint64_t kTurns = 0x20'0008;

// Spins without an exit, but for one port write each time the host sets kBellFlag:
//   0: incl kTurns; cmpl $0, kBellFlag; je 0; movl $0, kBellFlag; mov $doorbell, %dx; out %eax, %dx; incl
//   kBellCount; jmp 0
Code ringing_guest() {
  Code code;
  code.bytes({0xff, 0x05}).u32(kTurns);                  // 0
  code.bytes({0x83, 0x3d}).u32(kBellFlag).bytes({0x00}); // 6
  code.bytes({0x74, 0xf1});                              // 13
  code.bytes({0xc7, 0x05}).u32(kBellFlag).u32(0);        // 15
  code.dx(probe::kDoorbellPortBase).bytes({0xef});       // 25
  code.bytes({0xff, 0x05}).u32(kBellCount);              // 30
  return code.bytes({0xeb, 0xda});                       // 36
}

class Kick : public KvmTest {
protected:
  std::unique_ptr<Vm> ringing(uint32_t cpus) {
    kernel_ = std::make_unique<RawKernel>(ringing_guest());
    auto vm = make(raw(kernel_->path(), cpus));
    if (vm == nullptr)
      return nullptr;
    vm->use_hooks(&snare);
    EXPECT_TRUE(vm->start().has_value());
    EXPECT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kTurns) != 0; }));
    return vm;
  }
  static auto stop_by(Vm& vm, std::chrono::milliseconds limit) {
    return vm.stops().run([](stopper::StopContext&) { return 0; }, {.deadline = stopper::Clock::now() + limit});
  }
  static void expect_progress(const Vm& vm) {
    const auto before = peek<uint32_t>(vm, kTurns);
    EXPECT_TRUE(await(vm, [&] { return peek<uint32_t>(vm, kTurns) != before; }));
  }

  Snare snare; // outlives each test's Vm

private:
  std::unique_ptr<RawKernel> kernel_;
};

class KickRace : public Kick, public ::testing::WithParamInterface<VcpuPoint> {};

TEST_P(KickRace, IsNotLostAtThisStepOfTheLoop) {
  const auto vm = ringing(1);
  ASSERT_NE(vm, nullptr);
  for (int turn = 0; turn < 25; ++turn) {
    snare.allow(1);
    while (snare.signalled.try_acquire()) {
    }
    snare.arm(GetParam(), 0);
    poke<uint32_t>(*vm, kBellFlag, 1); // an exit, so that the loop goes once round
    snare.caught.acquire();
    auto stop = std::async(std::launch::async, [&] { return stop_by(*vm, 20s); });
    snare.signalled.acquire(); // queued, and its signal has been sent: it lands where the thread is now
    snare.let_go.release();
    const auto result = stop.get();
    snare.allow(INT64_MAX);
    ASSERT_TRUE(result.has_value()) << vm->explain("stop", result.error()).message();
    expect_progress(*vm);
  }
}
std::string step_name(const ::testing::TestParamInfo<VcpuPoint>& step) {
  constexpr std::array kStepNames{"BeforeSignal", "AfterSignal", "OutOfRun",
                                  "BeforeClear",  "AfterClear",  "AfterCheck"};
  return kStepNames[static_cast<size_t>(step.param)];
}
INSTANTIATE_TEST_SUITE_P(Steps, KickRace,
                         ::testing::Values(VcpuPoint::kOutOfRun, VcpuPoint::kBeforeClear, VcpuPoint::kAfterClear,
                                           VcpuPoint::kAfterCheck),
                         step_name);

// The work is queued, and found by the vCPU on its own before the signal is sent: the signal comes while the vCPU
// is held, or after it was let go, and does no harm.
TEST_F(Kick, ThatComesAfterItsWorkWasFoundDoesNoHarm) {
  const auto vm = ringing(1);
  ASSERT_NE(vm, nullptr);
  for (int turn = 0; turn < 25; ++turn) {
    snare.arm(VcpuPoint::kBeforeSignal, 0);
    auto stop = std::async(std::launch::async, [&] { return stop_by(*vm, 20s); });
    snare.caught.acquire(); // queued, not signalled
    const auto rung = vm->doorbell_counts(0).port_writes;
    poke<uint32_t>(*vm, kBellFlag, 1);
    EXPECT_TRUE(await(*vm, [&] { return vm->doorbell_counts(0).port_writes != rung; })); // it is out, and will look
    snare.let_go.release();
    ASSERT_TRUE(stop.get().has_value());
    expect_progress(*vm);
  }
}

TEST_F(Kick, WhoseSignalIsLostIsRepeated) {
  const auto vm = ringing(1);
  ASSERT_NE(vm, nullptr);
  snare.allow(0);
  auto stop = std::async(std::launch::async, [&] { return stop_by(*vm, 20s); });
  snare.signalled.acquire(); // the signal that was dropped
  snare.allow(INT64_MAX);
  ASSERT_TRUE(stop.get().has_value());
  EXPECT_GE(vm->stop_machine().last_report().rekicks, 1U);
  expect_progress(*vm);
}

TEST_F(Kick, OfTheEndWhoseSignalIsLostIsRepeated) {
  const auto vm = ringing(1);
  ASSERT_NE(vm, nullptr);
  snare.allow(0);
  vm->request_end({EndKind::kRequested, ""});
  snare.allow(INT64_MAX);
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
}

TEST_F(Kick, OfAVcpuThatCannotComeFailsAtTheDeadlineAndNamesIt) {
  const auto vm = ringing(2); // vCPU 1 waits to be started, which is as good a thread as any
  ASSERT_NE(vm, nullptr);
  while (vm->vcpu_status(1).exits == 0) // it may not even have entered yet
    ASSERT_TRUE(stop_by(*vm, 20s).has_value());
  ASSERT_TRUE(vm->stops()
                  .run([&](stopper::StopContext&) { // held now; it goes once round when it is let go
                    snare.arm(VcpuPoint::kAfterCheck, 1);
                    return 0;
                  })
                  .has_value());
  snare.caught.acquire();
  const auto failed = stop_by(*vm, 1s);
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code, stopper::StopErrc::kDeadline);
  const Error error = vm->explain("pause", failed.error());
  EXPECT_EQ(error.status, Status::kBusy);
  const std::string who =
      "vCPU 1 (thread " + std::to_string(vm->vcpu_status(1).thread_id) + ", last exit KVM_EXIT_INTR)";
  EXPECT_NE(error.message().find(who), std::string::npos) << error.message();
  EXPECT_EQ(error.message().find("vCPU 0"), std::string::npos) << error.message();
  expect_progress(*vm); // the other one goes on

  snare.let_go.release();
  EXPECT_TRUE(stop_by(*vm, 20s).has_value());
  expect_progress(*vm);
}

TEST_F(Kick, OfAThreadThatIsNotThereDoesNoHarm) {
  const RawKernel kernel(ringing_guest());
  const auto vm = make(raw(kernel.path(), 2));
  ASSERT_NE(vm, nullptr);
  EXPECT_TRUE(stop_by(*vm, 20s).has_value()); // nobody runs yet: nobody to hold
  vm->request_end({EndKind::kRequested, ""}); // kicks everybody
  EXPECT_FALSE(vm->start().has_value());
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
  vm->request_end({EndKind::kRequested, ""});
}

} // namespace
} // namespace stopvisor::vmm::testing
