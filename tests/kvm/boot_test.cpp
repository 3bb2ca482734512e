// SPDX-License-Identifier: Apache-2.0
// A VM runs: from its first instruction, through I/O and start-up of its vCPUs, to power-off.
#include <fstream>
#include <iterator>

#include "tests/kvm/kvm_fixture.h"
#include "tests/kvm/raw_guest.h"
#include "vmm/devices/acpi_power.h"
#include "vmm/devices/pvpanic.h"

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
  ::unlink(output.c_str());
}

TEST_F(RawGuest, StartsAsPvhHasIt) {
  const RawKernel kernel(Code().spin());
  VmConfig config = raw(kernel.path());
  config.start_held = true;
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  const auto registers = vm->registers(0);
  ASSERT_TRUE(registers.has_value());
  EXPECT_EQ(registers->rip, kRawEntry);
  EXPECT_EQ(registers->rflags, 2U);
  EXPECT_EQ(registers->cr0 & 0x8000'0001U, 1U);
  EXPECT_EQ(registers->efer, 0U);
  EXPECT_TRUE(registers->cs.default_32);
  EXPECT_EQ(registers->cs.limit, 0xffff'ffffU);
  EXPECT_EQ(peek<uint32_t>(*vm, registers->general[1]), 0x336ec578U); // RBX: hvm_start_info's magic
}

TEST_F(RawGuest, BzImageStartsIn64BitModeWithItsZeroPage) {
  const RawKernel kernel(bzimage_of(Code().spin()));
  VmConfig config = raw(kernel.path());
  config.memory_bytes = 64 << 20;
  config.start_held = true;
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  const auto registers = vm->registers(0);
  ASSERT_TRUE(registers.has_value());
  EXPECT_EQ(registers->rip, 0x100'0200U);
  EXPECT_EQ(registers->rflags, 2U); // interrupts are off
  EXPECT_EQ(registers->cr0 & 0x8000'0001U, 0x8000'0001U);
  EXPECT_EQ(registers->cr4 & 0x20U, 0x20U);
  EXPECT_EQ(registers->efer & 0x500U, 0x500U);
  EXPECT_TRUE(registers->cs.long_mode);
  EXPECT_EQ(registers->cs.selector, 0x10);
  EXPECT_EQ(registers->ds.selector, 0x18);
  EXPECT_EQ(peek<uint32_t>(*vm, registers->general[4] + kSetupMagicOffset), 0x5372'6448U); // RSI: "HdrS" in it
}

TEST_F(RawGuest, BzImageRunsAndSwitchesOffByAcpi) {
  const RawKernel kernel(bzimage_of(Code().out8(kAcpiPowerPort, 5 << 2 | 0x20).spin()));
  VmConfig config = raw(kernel.path());
  config.memory_bytes = 64 << 20;
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
}

TEST_F(RawGuest, PanicIsToldAndTheGuestGoesOn) {
  const RawKernel kernel(Code().out8(kPvPanicPort, 1).out8(0x3f8, '!').spin());
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(await(*vm, [&] { return !vm->console_log().empty(); }));
  EXPECT_TRUE(vm->panicked());
  EXPECT_EQ(vm->panics(), 1U);
  EXPECT_EQ(vm->state(), VmState::kRunning);
}

TEST_F(RawGuest, DoesStringOutputElementByElement) {
  // mov $numbers, %esi; mov $1000, %ecx; mov $doorbell, %dx; rep outsl; then power off
  const RawKernel kernel(Code()
                             .bytes({0xbe})
                             .u32(0x20'0000)
                             .bytes({0xb9})
                             .u32(1000)
                             .dx(probe::kDoorbellPortBase)
                             .bytes({0xfc, 0xf3, 0x6f})
                             .out32(probe::kPowerPort, probe::kPowerOff)
                             .spin());
  const auto vm = make(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  for (uint32_t i = 0; i < 1000; ++i)
    poke<uint32_t>(*vm, 0x20'0000 + 4ULL * i, i + 1);
  ASSERT_TRUE(vm->start().has_value());
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
  EXPECT_EQ(vm->doorbell_counts(0), (DoorbellCounts{.port_writes = 1000}));
}

TEST_F(RawGuest, DoesStringInputElementByElement) {
  // mov $0x200000, %edi; mov $1000, %ecx; mov $doorbell, %dx; rep insl; then power off
  const RawKernel kernel(Code()
                             .bytes({0xbf})
                             .u32(0x20'0000)
                             .bytes({0xb9})
                             .u32(1000)
                             .dx(probe::kDoorbellPortBase)
                             .bytes({0xfc, 0xf3, 0x6d})
                             .out32(probe::kPowerPort, probe::kPowerOff)
                             .spin());
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
  for (uint32_t i = 0; i < 1000; ++i)
    ASSERT_EQ(peek<uint32_t>(*vm, 0x20'0000 + 4ULL * i), i + 1);
}

TEST_F(RawGuest, ReadsAllOnesWhereThereIsNoDevice) {
  // mov $0x1234, %dx; in %dx, %eax; mov %eax, 0x200000; mov 0xc8000000, %eax; mov %eax, 0x200004
  const RawKernel kernel(Code()
                             .dx(0x1234)
                             .bytes({0xed, 0xa3})
                             .u32(0x20'0000)
                             .bytes({0xa1})
                             .u32(0xc800'0000)
                             .bytes({0xa3})
                             .u32(0x20'0004)
                             .out32(probe::kPowerPort, probe::kPowerOff)
                             .spin());
  const auto vm = started(raw(kernel.path()));
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
  EXPECT_EQ(peek<uint64_t>(*vm, 0x20'0000), ~0ULL);
}

class ProbeGuest : public KvmTest, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(ProbeGuest, StartsEveryVcpuAndWorks) {
  const auto vm = started(probe(GetParam(), ""));
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(vm->config().cmdline, "cpus=" + std::to_string(GetParam()));
  ASSERT_TRUE(await(*vm, [&] { return cpus_running(*vm) == GetParam(); }));
  for (uint32_t cpu = 0; cpu < GetParam(); ++cpu) {
    ASSERT_TRUE(await(*vm, [&] { return results(*vm, cpu).io_mmio_reads >= 3; }));
    EXPECT_EQ(results(*vm, cpu).apic_id, cpu);
    EXPECT_NE(vm->vcpu_status(cpu).thread_id, 0);
  }
  EXPECT_EQ(vm->state(), VmState::kRunning);
  ASSERT_TRUE(vm->press_power_button().has_value());
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
  EXPECT_FALSE(vm->press_power_button().has_value());
  EXPECT_EQ(vm->doorbell_counts().lost, 0U);
  EXPECT_EQ(vm->doorbell_counts().doubled, 0U);
}
INSTANTIATE_TEST_SUITE_P(Vcpus, ProbeGuest, ::testing::Values(1, 2, 4));

TEST_F(ProbeGuest, RunsOnSharedMemory) {
  VmConfig config = probe(2, "scenarios=ledger exit_after_slices=3");
  config.backing = MemoryBacking::kMemfd;
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
}

TEST_F(ProbeGuest, RunsOnHugePages) {
  VmConfig config = probe(2, "scenarios=ledger exit_after_slices=3");
  config.backing = MemoryBacking::kHugetlb;
  std::ifstream pool("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
  uint64_t free_pages = 0;
  if (!(pool >> free_pages) || free_pages < config.memory_bytes >> 21)
    GTEST_SKIP() << "skipped: the host's pool has " << free_pages << " free huge pages of 2 MiB, the test needs "
                 << (config.memory_bytes >> 21);
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
}

TEST_F(ProbeGuest, FindsMemoryOnBothSidesOfTheHole) {
  VmConfig config = probe(1, "scenarios=ledger exit_after_slices=3");
  config.memory_bytes = 5ULL << 30; // reserved, not touched
  const auto vm = started(config);
  ASSERT_NE(vm, nullptr);
  ASSERT_EQ(vm->memory().slots().size(), 2U);
  EXPECT_EQ(vm->wait_for_end().kind, EndKind::kPowerOff);
  const auto found = peek<uint64_t>(*vm, probe::kResultsGpa + offsetof(probe::Results, memory_bytes));
  EXPECT_GT(found, (5ULL << 30) - (2ULL << 20));
  EXPECT_LE(found, 5ULL << 30);
}

} // namespace
} // namespace stopvisor::vmm::testing
