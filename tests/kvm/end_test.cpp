// SPDX-License-Identifier: Apache-2.0
// Each way a guest's life can end: said with vCPU, reason, registers and code, and never in the way of a stop.
#include <future>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"

namespace stopvisor::vmm::testing {
namespace {

class End : public KvmTest {
protected:
  static void expect_in(const std::string& message, std::initializer_list<const char*> parts) {
    for (const char* part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << "no \"" << part << "\" in:\n" << message;
  }
};

TEST_F(End, OfATripleFaultNamesVcpuRegistersAndCode) {
  const RawKernel kernel(Code().bytes({0xb8}).u32(0x12345678).bytes({0x0f, 0x0b, 0xaa, 0xbb})); // ud2, no IDT
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  const VmEnd end = vm->wait_for_end();
  EXPECT_EQ(end.kind, EndKind::kTripleFault);
  // SVM leaves no registers to read after a shutdown: the code is asked for only where RIP still tells of it.
  expect_in(end.message, {"vCPU 0", "triple fault", "KVM_EXIT_SHUTDOWN", "rip ", "rax ", "cr0 "});
  if (end.message.find("12345678") != std::string::npos)
    expect_in(end.message, {"bytes at rip: 0f 0b aa bb"});
}

TEST_F(End, OfAnInternalErrorNamesVcpuRegistersAndWhatIsAtRip) {
  // jmp to where there is nothing: no KVM can fetch instructions from MMIO
  const RawKernel kernel(Code().bytes({0xb8}).u32(0xc800'0000).bytes({0xff, 0xe0}));
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  const VmEnd end = vm->wait_for_end();
  EXPECT_EQ(end.kind, EndKind::kVmmError);
  expect_in(end.message, {"vCPU 0", "KVM_EXIT_INTERNAL_ERROR", "suberror", "rip 00000000c8000000",
                          "rax 00000000c8000000", "bytes at rip: none, 0xc8000000 is not RAM"});
}

TEST_F(End, OfACrashHasTheGuestsOwnWords) {
  const auto vm = started(probe(2, "boot_fault=crash"));
  ASSERT_NE(vm, nullptr);
  const VmEnd end = vm->wait_for_end();
  EXPECT_EQ(end.kind, EndKind::kCrash);
  expect_in(end.message,
            {"vCPU 0", "the guest reported a crash", "rip ", "bytes at rip:", "the guest says: vCPU 0"});
}

TEST_F(End, OfATripleFaultOfTheProbe) {
  const auto vm = started(probe(2, "boot_fault=triple"));
  ASSERT_NE(vm, nullptr);
  const VmEnd end = vm->wait_for_end();
  EXPECT_EQ(end.kind, EndKind::kTripleFault);
  expect_in(end.message, {"triple fault", "rip "});
}

TEST_F(End, IsTheFirstReasonGiven) {
  const RawKernel kernel(Code().spin());
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  vm->request_end({EndKind::kCrash, "first"});
  vm->request_end({EndKind::kPowerOff, "second"});
  const VmEnd end = vm->wait_for_end();
  EXPECT_EQ(end.kind, EndKind::kCrash);
  EXPECT_EQ(end.message, "first");
  EXPECT_EQ(vm->wait_for_end().message, "first");
}

TEST_F(End, ComesOutOfAHold) {
  const auto vm = started(probe(4, "scenarios=io"));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->stops().acquire_hold().has_value());
  ASSERT_TRUE(vm->stops().acquire_hold().has_value());
  EXPECT_EQ(vm->state(), VmState::kHeld);
  vm->request_end({EndKind::kRequested, ""});
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
  const auto late = vm->stops().run([](stopper::StopContext&) { return 0; });
  ASSERT_FALSE(late.has_value());
  EXPECT_EQ(late.error().code, stopper::StopErrc::kEnded);
}

TEST_F(End, ComesOutOfAHoldThatIsBeingTaken) {
  for (int turn = 0; turn < 50; ++turn) {
    const auto vm = started(probe(2, "scenarios=io"));
    ASSERT_NE(vm, nullptr);
    auto hold = std::async(std::launch::async, [&vm] { return vm->stops().acquire_hold().has_value(); });
    vm->request_end({EndKind::kRequested, ""});
    EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested); // whether the hold was taken or not
    (void)hold.get();
  }
}

TEST_F(End, MayBeAskedForUnderAStop) {
  const auto vm = started(probe(4, "scenarios=io"));
  ASSERT_NE(vm, nullptr);
  const auto stop = vm->stops().run([&](stopper::StopContext&) {
    vm->request_end({EndKind::kRequested, ""});
    return 0;
  });
  EXPECT_TRUE(stop.has_value());
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
}

TEST_F(End, MayComeBeforeTheStart) {
  const auto vm = make(probe(2, ""));
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(vm->state(), VmState::kCreated);
  vm->request_end({EndKind::kRequested, ""});
  EXPECT_FALSE(vm->start().has_value());
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
}

TEST_F(End, NeedsNoStart) {
  EXPECT_NE(make(probe(2, "")), nullptr);
}

// Power-off on a vCPU's thread, while stops and holds are asked for all the time by others.
TEST_F(End, ByTheGuestMeetsStopsAndHoldsInFlight) {
  for (int turn = 0; turn < 10; ++turn) {
    const auto vm = started(probe(4, "scenarios=io exit_after_slices=" + std::to_string(1 + turn)));
    ASSERT_NE(vm, nullptr);
    std::vector<std::future<void>> clients;
    clients.reserve(3);
    for (int client = 0; client < 3; ++client)
      clients.push_back(std::async(std::launch::async, [&vm, client] {
        for (;;) {
          const auto stop =
              client == 0 ? vm->stops().acquire_hold() : vm->stops().run([](stopper::StopContext&) { return 0; });
          if (!stop) {
            EXPECT_EQ(stop.error().code, stopper::StopErrc::kEnded) << vm->explain("stop", stop.error()).message();
            return;
          }
          if (client == 0)
            vm->stops().release_hold();
        }
      }));
    EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
  }
}

} // namespace
} // namespace stopvisor::vmm::testing
