// SPDX-License-Identifier: Apache-2.0
// Places in a Linux guest: the kernel's and a process' address spaces.
#include <gtest/gtest.h>

#include "tests/unit/linux/fake_linux.h"
#include "tests/unit/patch/fake_guest.h"
#include "tools/patch/spaces.h"

namespace stopvisor::patch {
namespace {

using vmm::testing::FakeLinux;

// As much of a guest as looking up a place takes.
class LinuxGuest final : public Guest {
public:
  LinuxGuest() { linux.build(); }
  FakeLinux linux;

  std::expected<void, vmm::Error> under_stop(const Wanted& /*wanted*/, Body body) override {
    return body({nullptr, 1});
  }
  void expect_registers(bool /*expected*/) noexcept override {}
  std::optional<StopTimes> times_of(uint64_t /*sequence*/) override { return std::nullopt; }
  const vmm::GuestMemory& memory() const noexcept override { return linux.memory(); }
  uint64_t resets() const noexcept override { return 0; }
  uint32_t cpus() const noexcept override { return FakeLinux::kCpus; }
  std::expected<vmm::Registers, vmm::Error> registers(uint32_t cpu) const override { return linux.registers(cpu); }
  bool waits_to_start(uint32_t /*cpu*/) const override { return false; }
  bool write(vmm::Gpa gpa, std::span<std::byte> /*to*/, std::span<const std::byte> from) noexcept override {
    return linux.memory().write(gpa, from);
  }
};

TEST(SpacesTest, AProcessIsFoundByItsNumberWhateverTheVcpusUse) {
  LinuxGuest guest;
  const auto kernel = vmm::LinuxKernel::find(guest.memory(), guest.linux.all_registers(), nullptr);
  ASSERT_TRUE(kernel.has_value()) << kernel.error();
  Spaces spaces(guest, &*kernel);
  const auto here = spaces.locate(*parse_place("gva:0x1234@pid=100"));
  ASSERT_TRUE(here.has_value()) << here.error();
  EXPECT_EQ(here->address, 0x1234U);
  ASSERT_NE(here->paging, nullptr);
  EXPECT_EQ(here->paging->cr3, FakeLinux::kProcessTop);
  EXPECT_EQ(spaces.locate(*parse_place("gva:0x1@pid=100"))->paging, here->paging); // looked for once
  for (int i = 0; i < 2; ++i) {
    const auto thread = spaces.locate(*parse_place("gva:0x1234@pid=101"));
    ASSERT_FALSE(thread.has_value());
    EXPECT_NE(thread.error().find("is a kernel thread"), std::string::npos);
  }
  const auto none = spaces.locate(*parse_place("gva:0x1234@pid=7"));
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error(), "there is no process 7");
}

} // namespace
} // namespace stopvisor::patch
