// SPDX-License-Identifier: Apache-2.0
// Finding a kernel in a guest's memory, from page tables to the task on each vCPU.
#include "vmm/linux/linux_kernel.h"

#include <gtest/gtest.h>

#include "tests/unit/linux/fake_linux.h"
#include "vmm/linux/guest_facts.h"

namespace stopvisor::vmm {
namespace {

using testing::FakeLinux;
using testing::KallsymsBuilder;

std::expected<LinuxKernel, std::string> find(FakeLinux& guest, std::vector<Registers> vcpus) {
  return LinuxKernel::find(guest.memory(), vcpus, nullptr);
}

std::string reason(FakeLinux& guest, const Registers& registers) {
  const auto kernel = find(guest, {registers});
  return kernel ? "found" : kernel.error();
}

TEST(LinuxKernel, IsFoundWithItsSlideAndIdentity) {
  FakeLinux guest;
  guest.build();

  const auto kernel = find(guest, guest.all_registers());

  ASSERT_TRUE(kernel) << kernel.error();
  EXPECT_EQ(kernel->text(), 0xffff'ffff'9e00'0000u);
  EXPECT_EQ(kernel->slide(), 0x1d00'0000u);
  EXPECT_EQ(kernel->identity().release, "6.1.0-56-fake");
  EXPECT_EQ(kernel->identity().banner, "Linux version 6.1.0-56-fake (somebody) #1 SMP");
  ASSERT_EQ(kernel->identity().build_id.size(), 8u);
  EXPECT_EQ(kernel->identity().build_id.front(), std::byte{1});
  EXPECT_TRUE(kernel->is_in(guest.memory()));
}

TEST(LinuxKernel, IsFoundInEveryOrderOfItsTables) {
  for (const auto order : {KallsymsBuilder::Order::kOffsetsFirst, KallsymsBuilder::Order::kOffsetsFirstWithOrder,
                           KallsymsBuilder::Order::kOffsetsLast})
    for (const bool absolute : {true, false}) {
      FakeLinux guest;
      guest.kallsyms.order = order;
      guest.kallsyms.absolute_percpu = absolute;
      guest.build();
      const auto kernel = find(guest, {guest.registers()});
      ASSERT_TRUE(kernel) << kernel.error();
      EXPECT_EQ(kernel->symbols().size(), guest.symbols().size() + 602);
      for (const auto& [name, address] : guest.symbols())
        EXPECT_EQ(kernel->symbols().address_of(name), address) << name;
      EXPECT_EQ(kernel->symbols().address_of("long_" + std::string(300, 'x')), guest.text() + 0x7200);
      const auto vcpus = guest.all_registers();
      const GuestFacts facts = read_facts(*kernel, guest.memory(), vcpus);
      ASSERT_TRUE(facts.vcpus[1].task) << facts.vcpus[1].task.error();
      EXPECT_EQ(facts.vcpus[1].task->name, "worker/1");
    }
}

TEST(LinuxKernel, IsFoundWithFivePageTableLevels) {
  FakeLinux guest;
  guest.cr4 = 0x1020;
  guest.build();
  const auto kernel = find(guest, {guest.registers()});
  ASSERT_TRUE(kernel) << kernel.error();
  EXPECT_EQ(kernel->slide(), guest.slide);
}

TEST(LinuxKernel, IsFoundFromAProcessWithIsolatedPageTables) {
  FakeLinux guest;
  guest.build();
  const auto kernel = find(guest, {guest.user_registers()});
  ASSERT_TRUE(kernel) << kernel.error();
  EXPECT_EQ(kernel->slide(), guest.slide);
}

TEST(LinuxKernel, IsReadByItsOwnTablesOnceItIsFound) {
  FakeLinux guest;
  guest.build();
  const auto kernel = find(guest, {guest.registers()});
  ASSERT_TRUE(kernel) << kernel.error();
  guest.put_bytes(FakeLinux::kProcessTop, std::vector<std::byte>(4096)); // the process has ended
  EXPECT_EQ(kernel->paging().cr3, FakeLinux::kImage + FakeLinux::kTopTable);
  EXPECT_TRUE(kernel->is_in(guest.memory()));
}

TEST(LinuxKernel, IsNoMoreThereWhenItsBannerOrNotesChange) {
  for (const uint64_t place : {FakeLinux::kBanner + 20, FakeLinux::kNotes + 33}) {
    FakeLinux guest;
    guest.build();
    const auto kernel = find(guest, {guest.registers()});
    ASSERT_TRUE(kernel) << kernel.error();
    guest.put(FakeLinux::kImage + place, 'x');
    EXPECT_FALSE(kernel->is_in(guest.memory()));
  }
}

TEST(LinuxKernel, WhatIsMissingIsNamed) {
  FakeLinux real_mode;
  real_mode.build();
  Registers registers = real_mode.registers();
  registers.cr0 = 0;
  EXPECT_EQ(reason(real_mode, registers), "the vCPU is not in 64-bit mode");
  registers = real_mode.registers();
  registers.cr3 = 0xdead'f000;
  EXPECT_EQ(reason(real_mode, registers), "nothing is mapped where a kernel's image lies");
  registers.cr3 = 0x000f'ffff'ffff'f000;
  EXPECT_EQ(reason(real_mode, registers), "nothing is mapped where a kernel's image lies");
  EXPECT_EQ(LinuxKernel::find(real_mode.memory(), {}, nullptr).error(), "there is no vCPU to look by");

  FakeLinux stripped;
  stripped.with_kallsyms = false;
  stripped.build();
  EXPECT_EQ(reason(stripped, stripped.registers()), "no table of symbol-name tokens");

  FakeLinux other;
  other.banner = "FreeBSD 14\n";
  other.build();
  EXPECT_EQ(reason(other, other.registers()),
            "linux_banner at gva:0xffffffff9e010000 does not read \"Linux version ...\"");
}

// Every entry of every table leads to the same page: an image of a gigabyte in a small guest.
TEST(LinuxKernel, ImageThatIsMappedWithoutEndIsRefused) {
  FakeLinux guest;
  guest.build();
  for (uint64_t i = 0; i < 512; ++i)
    guest.put(FakeLinux::kTables + 0x3000 + i * 8, FakeLinux::kImage | 0x83);
  EXPECT_EQ(reason(guest, guest.registers()), "more than 128 MiB are mapped where a kernel's image lies");
}

TEST(LinuxKernel, ControlCharactersOfABannerAreNotPassedOn) {
  FakeLinux guest;
  guest.banner = "Linux version 6.1\x1b[31m (x)\n";
  guest.build();
  const auto kernel = find(guest, {guest.registers()});
  ASSERT_TRUE(kernel) << kernel.error();
  EXPECT_EQ(kernel->identity().banner, "Linux version 6.1?[31m (x)");
}

TEST(GuestFacts, AreReadOfARunningKernel) {
  FakeLinux guest;
  guest.build();
  const auto vcpus = guest.all_registers();
  const auto kernel = find(guest, vcpus);
  ASSERT_TRUE(kernel) << kernel.error();

  const GuestFacts facts = read_facts(*kernel, guest.memory(), vcpus);

  EXPECT_EQ(facts.uptime_seconds, 77u);
  EXPECT_EQ(facts.panic_cpu, -1);
  ASSERT_TRUE(facts.vmcoreinfo);
  EXPECT_EQ(facts.vmcoreinfo->slide, 0x1d00'0000u);
  EXPECT_EQ(facts.vmcoreinfo->release, "6.1.0-56-fake");
  ASSERT_EQ(facts.vcpus.size(), 2u);
  ASSERT_TRUE(facts.vcpus[1].task) << facts.vcpus[1].task.error();
  EXPECT_EQ(facts.vcpus[1].linux_cpu, 1u);
  EXPECT_EQ(facts.vcpus[1].task->thread_id, 102);
  EXPECT_EQ(facts.vcpus[1].task->process_id, 101);
  EXPECT_EQ(facts.vcpus[1].task->name, "worker/1");
  EXPECT_EQ(kernel->symbols().place_of(vcpus[0].rip)->text(), "function_1+0x5");
}

TEST(GuestFacts, VcpuInAProcessIsFoundByItsLocalApic) {
  FakeLinux guest;
  guest.build();
  std::vector<Registers> vcpus{guest.registers(0), guest.user_registers()};
  guest.put(FakeLinux::kPerCpu + FakeLinux::kApicId, uint16_t{1}); // the kernel numbers them the other way round
  guest.put(FakeLinux::kPerCpu + 0x4'0000 + FakeLinux::kApicId, uint16_t{0});
  const auto kernel = find(guest, vcpus);
  ASSERT_TRUE(kernel) << kernel.error();
  vcpus[0] = guest.user_registers();
  const GuestFacts facts = read_facts(*kernel, guest.memory(), vcpus);
  EXPECT_EQ(facts.vcpus[0].linux_cpu, 1u);
  EXPECT_EQ(facts.vcpus[1].linux_cpu, 0u);
}

TEST(GuestFacts, WhatIsMissingIsLeftOutAndNamed) {
  FakeLinux guest;
  guest.btf.clear();
  guest.vmcoreinfo = "";
  guest.build();
  std::vector<Registers> vcpus = guest.all_registers();
  vcpus[1].waiting = true;
  const auto kernel = find(guest, vcpus);
  ASSERT_TRUE(kernel) << kernel.error();
  const GuestFacts facts = read_facts(*kernel, guest.memory(), vcpus);
  EXPECT_FALSE(facts.uptime_seconds);
  EXPECT_FALSE(facts.vmcoreinfo);
  EXPECT_EQ(facts.vcpus[0].task.error(), "the kernel carries no type information (BTF)");
  EXPECT_EQ(facts.vcpus[1].task.error(), "the guest has not started this vCPU");
}

TEST(GuestFacts, TaskThatLeadsNowhereIsNamed) {
  FakeLinux guest;
  guest.build();
  const auto kernel = find(guest, {guest.registers()});
  ASSERT_TRUE(kernel) << kernel.error();
  for (const uint64_t forged :
       {uint64_t{0}, uint64_t{0xffff'ffff'ffff'fff8}, uint64_t{0x1000}, uint64_t{1} << 60}) {
    guest.put(FakeLinux::kPerCpu + FakeLinux::kCurrentTask, forged);
    const GuestFacts facts = read_facts(*kernel, guest.memory(), std::vector{guest.registers()});
    EXPECT_EQ(facts.vcpus[0].task.error(), "the kernel's current_task leads nowhere");
  }
}

TEST(GuestFacts, PanicIsSeen) {
  FakeLinux guest;
  guest.build();
  const auto kernel = find(guest, {guest.registers()});
  ASSERT_TRUE(kernel) << kernel.error();
  guest.put(FakeLinux::kImage + FakeLinux::kData + 8, int32_t{1});
  EXPECT_EQ(read_facts(*kernel, guest.memory(), std::vector{guest.registers()}).panic_cpu, 1);
}

} // namespace
} // namespace stopvisor::vmm
