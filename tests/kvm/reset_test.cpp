// SPDX-License-Identifier: Apache-2.0
// A reset puts the machine back to its start, whichever way the guest asks for it.
#include <array>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"

namespace stopvisor::vmm::testing {
namespace {

constexpr uint64_t kUp = 0x20'0000; // the guest sets it: it is up
constexpr uint64_t kGo = 0x20'0004; // the host sets it: reset now
constexpr uint64_t kOld = 0x20'0008;
constexpr uint64_t kPending = 0x20'000c; // the guest: what is pending at the first PIC, and bit 8

// movl $1, kUp; 10: cmpl $0, kGo; je 10; then `ask`, and spin.
Code resetting_guest(Code& ask) {
  Code code;
  code.bytes({0xc7, 0x05}).u32(kUp).u32(1);
  code.bytes({0x83, 0x3d}).u32(kGo).bytes({0x00, 0x74, 0xf7});
  const std::vector<uint8_t>& more = ask;
  for (const uint8_t byte : more)
    code.bytes({byte});
  return code.spin();
}

using Reset = KvmTest;

TEST_F(Reset, StartsAnewWhicheverWayItIsAskedFor) {
  std::array<Code, 3> ways;
  ways[0].out32(probe::kPowerPort, probe::kPowerReset);
  ways[1].out8(0x64, 0xfe);
  ways[2].out8(0xcf9, 0x02).out8(0xcf9, 0x06);
  for (Code& way : ways) {
    const RawKernel kernel(resetting_guest(way));
    const auto vm = started(raw(kernel.path(), 2));
    ASSERT_NE(vm, nullptr);
    for (uint64_t turn = 1; turn <= 3; ++turn) {
      ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 1; }));
      poke<uint32_t>(*vm, kOld, 1);
      poke<uint32_t>(*vm, kGo, 1);
      ASSERT_TRUE(await(*vm, [&] { return vm->resets() == turn; }));
      ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 1; }));
      EXPECT_EQ(peek<uint32_t>(*vm, kOld), 0U);
    }
  }
}

// GSI 9 is a line of the second PIC, which shows at the first one as line 2.
TEST_F(Reset, LeavesNoInterruptPendingAtAPic) {
  Code code;
  code.bytes({0xb0, 0x0a, 0xe6, 0x20, 0xe4, 0x20});                                 // IRR of the first PIC
  code.bytes({0x0f, 0xb6, 0xc0, 0x0d, 0x00, 0x01, 0x00, 0x00, 0xa3}).u32(kPending); // movzx; or $0x100; mov
  Code ask;
  ask.out8(0x64, 0xfe);
  const RawKernel kernel(code.append(resetting_guest(ask)));
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 1; }));
  EXPECT_EQ(peek<uint32_t>(*vm, kPending), 0x100U);
  ASSERT_TRUE(vm->press_power_button());
  poke<uint32_t>(*vm, kGo, 1);
  ASSERT_TRUE(await(*vm, [&] { return vm->resets() == 1; }));
  ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 1; }));
  EXPECT_EQ(peek<uint32_t>(*vm, kPending), 0x100U);
}

TEST_F(Reset, OfABusyProbeStartsEveryVcpuAgain) {
  for (const MemoryBacking backing : {MemoryBacking::kAnonymous, MemoryBacking::kMemfd}) {
    VmConfig config = probe(4, "");
    config.backing = backing;
    const auto vm = started(config);
    ASSERT_NE(vm, nullptr);
    for (uint64_t turn = 1; turn <= 3; ++turn) {
      ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 4; }));
      ASSERT_TRUE(await(*vm, [&] { return results(*vm, 3).code_calls != 0; }));
      // Code site 1 becomes: mov $0xfe, %al; out %al, $0x64; ret. Several vCPUs may get there.
      const std::array<uint8_t, 5> pulse{0xb0, 0xfe, 0xe6, 0x64, 0xc3};
      const auto stop = vm->stops().run([&](stopper::StopContext&) {
        poke(*vm, probe::code_site_gpa(1), pulse);
        return 0;
      });
      ASSERT_TRUE(stop.has_value());
      ASSERT_TRUE(await(*vm, [&] { return vm->resets() >= turn; }));
    }
    ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == 4; }));
    ASSERT_TRUE(await(*vm, [&] { return results(*vm, 3).timer_interrupts > 2; }));
    EXPECT_EQ(vm->doorbell_counts().lost + vm->doorbell_counts().doubled, 0U);
    EXPECT_EQ(vm->resets(), 3U);
  }
}

TEST_F(Reset, WaitsForHoldsAndMeetsTheEnd) {
  Code ask;
  ask.out8(0x64, 0xfe);
  const RawKernel kernel(resetting_guest(ask));
  for (int turn = 0; turn < 10; ++turn) {
    const auto vm = started(raw(kernel.path(), 2));
    ASSERT_NE(vm, nullptr);
    ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, kUp) == 1; }));
    poke<uint32_t>(*vm, kGo, 1);
    if (turn % 2 == 0) {
      ASSERT_TRUE(vm->stops().acquire_hold().has_value());
    }
    vm->request_end({EndKind::kRequested, ""});
    EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
  }
}

} // namespace
} // namespace stopvisor::vmm::testing
