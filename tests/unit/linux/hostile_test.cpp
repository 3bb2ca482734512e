// SPDX-License-Identifier: Apache-2.0
// A guest that forges what we look at: whatever its memory holds, looking ends and touches nothing outside it.
#include <gtest/gtest.h>

#include <random>

#include "tests/unit/linux/fake_linux.h"
#include "vmm/control/guest_symbols.h"
#include "vmm/linux/guest_facts.h"

namespace stopvisor::vmm {
namespace {

using testing::FakeLinux;

// Where what is read lies, so that changes hit it.
struct Place {
  uint64_t gpa;
  uint64_t bytes;
};

std::vector<Place> places(const FakeLinux& guest) {
  return {{FakeLinux::kTables, 0x6000},
          {FakeLinux::kProcessTop, 0x1000},
          {FakeLinux::kImage + FakeLinux::kBanner, 64},
          {FakeLinux::kImage + FakeLinux::kNotes, 44},
          {FakeLinux::kImage + FakeLinux::kData, 0x140},
          {FakeLinux::kImage + FakeLinux::kTopTable, 0x1000},
          {FakeLinux::kImage + FakeLinux::kBtf, guest.btf.size()},
          {FakeLinux::kImage + FakeLinux::kTablesOfSymbols, 0x8000},
          {FakeLinux::kPerCpu + FakeLinux::kCurrentTask, 8},
          {FakeLinux::kTasks, 64},
          {FakeLinux::kVmcoreInfo, 128}};
}

// Values that lead to the edges.
uint64_t nasty(std::mt19937_64& random) {
  constexpr std::array<uint64_t, 9> kValues{0,
                                            1,
                                            UINT64_MAX,
                                            UINT32_MAX,
                                            0x8000'0000,
                                            0x7fff'ffff'ffff'ffff,
                                            kKernelImageStart,
                                            FakeLinux::kImage | 0x83,
                                            FakeLinux::kTables | 3};
  return random() % 2 == 0 ? kValues[random() % kValues.size()] : random();
}

void spoil(FakeLinux& guest, std::mt19937_64& random) {
  const auto all = places(guest);
  for (uint64_t i = 0; i <= random() % 8; ++i) {
    const Place place = all[random() % all.size()];
    const uint64_t at = place.gpa + random() % place.bytes;
    if (random() % 2 == 0)
      guest.put(at, static_cast<uint8_t>(random()));
    else
      guest.put(at & ~7ULL, nasty(random));
  }
}

void look(FakeLinux& guest, const LinuxKernel& kernel) {
  const auto vcpus = guest.all_registers();
  const GuestFacts facts = read_facts(kernel, guest.memory(), vcpus);
  EXPECT_EQ(facts.vcpus.size(), vcpus.size());
  (void)kernel.is_in(guest.memory());
  (void)kernel.symbols().place_of(vcpus[0].rip);
  for (const char* name : {"current_task", "linux_banner", "twin"}) {
    const auto at = symbol_address("peek", {GuestAddress::Kind::kSymbol, 8, 1, name}, kernel, guest.memory());
    EXPECT_TRUE(at || at.error().status == Status::kRefused);
  }
}

TEST(HostileGuest, SpoiledMemoryIsSurvived) {
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    FakeLinux guest;
    guest.kallsyms.order = testing::KallsymsBuilder::Order(seed % 3);
    guest.cr4 = seed % 2 == 0 ? 0x20 : 0x1020;
    guest.build();
    const std::vector<Registers> vcpus{guest.registers(), guest.user_registers()};
    const auto whole = LinuxKernel::find(guest.memory(), vcpus, nullptr);
    ASSERT_TRUE(whole) << whole.error();
    spoil(guest, random);
    look(guest, *whole); // it changes after it was found
    if (const auto spoiled = LinuxKernel::find(guest.memory(), vcpus, nullptr))
      look(guest, *spoiled);
    else
      EXPECT_FALSE(spoiled.error().empty());
  }
}

TEST(HostileGuest, PageTablesThatMapThemselvesAreSurvived) {
  FakeLinux guest;
  guest.build();
  for (uint64_t i = 0; i < 512; ++i)
    guest.put(FakeLinux::kProcessTop + i * 8, FakeLinux::kProcessTop | 3);
  const std::vector<Registers> vcpus{guest.registers()};
  const auto kernel = LinuxKernel::find(guest.memory(), vcpus, nullptr);
  ASSERT_FALSE(kernel);
  EXPECT_EQ(kernel.error(), "more than 128 MiB are mapped where a kernel's image lies");
}

class SymbolAddress : public ::testing::Test {
protected:
  void SetUp() override {
    guest_.build();
    const auto vcpus = guest_.all_registers();
    auto kernel = LinuxKernel::find(guest_.memory(), vcpus, nullptr);
    ASSERT_TRUE(kernel) << kernel.error();
    kernel_.emplace(*std::move(kernel));
  }
  std::expected<uint64_t, Error> address(const char* text) {
    return symbol_address("peek", *parse_guest_address("peek", text), *kernel_, guest_.memory());
  }
  std::string refusal(const char* text) {
    const auto found = address(text);
    if (found)
      return "found";
    EXPECT_EQ(found.error().status, Status::kRefused);
    return found.error().message();
  }
  FakeLinux guest_;
  std::optional<LinuxKernel> kernel_;
};

TEST_F(SymbolAddress, IsThatOfTheRunningKernel) {
  EXPECT_EQ(address("sym:linux_banner"), guest_.text() + FakeLinux::kBanner);
  EXPECT_EQ(address("sym:linux_banner+0x10"), guest_.text() + FakeLinux::kBanner + 0x10);
  EXPECT_EQ(address("sym:current_task"), FakeLinux::per_cpu(0) + FakeLinux::kCurrentTask);
  EXPECT_EQ(address("sym:current_task+0x8@1"), FakeLinux::per_cpu(1) + FakeLinux::kCurrentTask + 8);
}

TEST_F(SymbolAddress, RefusalsNameWhatIsMeant) {
  EXPECT_EQ(refusal("sym:nothing"), "peek: sym:nothing: the kernel has no such symbol");
  EXPECT_EQ(refusal("sym:twin"), "peek: sym:twin: 2 symbols have that name: gva:0xffffffff9e007000, "
                                 "gva:0xffffffff9e007100; give the address of the one you mean");
  EXPECT_EQ(refusal("sym:linux_banner@1"), "peek: sym:linux_banner@1: is no per-CPU variable, and takes no @CPU");
  EXPECT_EQ(refusal("sym:current_task@2"),
            "peek: sym:current_task@2: is a per-CPU variable, and the kernel has no CPU 2");
}

} // namespace
} // namespace stopvisor::vmm
