// SPDX-License-Identifier: Apache-2.0
// A VM runs, from its first instruction to each way it can end.
#include <fstream>
#include <iterator>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"

namespace stopvisor::vmm::testing {
namespace {

using RawGuest = KvmTest;

TEST_F(RawGuest, SpeaksThroughTheSerialPortAndPowersOff) {
  const std::string output = ::testing::TempDir() + "stopvisor-serial-test";
  const RawKernel kernel(
      Code().out8(0x3f8, 'H').out8(0x3f8, 'i').out32(probe::kPowerPort, probe::kPowerOff).spin());
  VmConfig config = raw(kernel.path());
  config.serial = SerialTarget::kFile;
  config.serial_path = output;
  {
    const auto vm = started(config);
    ASSERT_NE(vm, nullptr);
    const VmEnd end = vm->wait_for_end();
    EXPECT_EQ(end.kind, EndKind::kPowerOff) << end.message;
    EXPECT_EQ(vm->state(), VmState::kEnded);
    EXPECT_EQ(vm->vcpu_status(0).thread_id, 0);
    EXPECT_GE(vm->vcpu_status(0).exits, 3U);
  }
  std::ifstream file(output);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "Hi");
}

TEST_F(RawGuest, IsStoppedWhileItSpinsAndGoesOn) {
  const RawKernel kernel(Code().bytes({0xff, 0x05}).u32(0x20'0000).bytes({0xeb, 0xf8})); // incl 0x200000; jmp
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  for (int turn = 0; turn < 100; ++turn) {
    const auto before = peek<uint32_t>(*vm, 0x20'0000);
    ASSERT_TRUE(await(*vm, [&] { return peek<uint32_t>(*vm, 0x20'0000) != before; }));
    uint32_t first = 0;
    uint32_t second = 1;
    uint64_t rip = 0;
    const auto stop = vm->stops().run([&](stopper::StopContext&) {
      first = peek<uint32_t>(*vm, 0x20'0000);
      rip = vm->registers(0).value_or(Registers{}).rip;
      second = peek<uint32_t>(*vm, 0x20'0000);
      return 7;
    });
    ASSERT_TRUE(stop.has_value()) << vm->explain("stop", stop.error()).message();
    EXPECT_EQ(stop->result, 7);
    EXPECT_EQ(first, second);
    EXPECT_TRUE(rip == kRawEntry || rip == kRawEntry + 6) << std::hex << rip;
  }
  vm->request_end({EndKind::kRequested, ""});
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kRequested);
}

} // namespace
} // namespace stopvisor::vmm::testing
