// SPDX-License-Identifier: Apache-2.0
// Address spaces of processes, by a list that the guest wrote and may have forged.
#include <gtest/gtest.h>

#include "tests/unit/linux/fake_linux.h"
#include "vmm/linux/process_table.h"

namespace stopvisor::vmm::testing {
namespace {

class ProcessTable : public ::testing::Test {
protected:
  void find_kernel() {
    guest_.build();
    auto found = LinuxKernel::find(guest_.memory(), guest_.all_registers(), nullptr);
    ASSERT_TRUE(found.has_value()) << found.error();
    kernel_.emplace(*std::move(found));
  }
  // The table, or why there is none.
  std::string found(uint32_t pid) {
    const auto table = find_process_table(*kernel_, guest_.memory(), pid);
    return table ? std::to_string(*table) : table.error();
  }
  static constexpr uint64_t kFirst = FakeLinux::kTasks, kSecond = FakeLinux::kTasks + 0x1000;

  FakeLinux guest_;
  std::optional<LinuxKernel> kernel_;
};

TEST_F(ProcessTable, IsThatOfTheProcessWhichHasOne) {
  find_kernel();
  EXPECT_EQ(found(100), std::to_string(FakeLinux::kProcessTop));
  EXPECT_EQ(found(101), "process 101 has no address space: it is a kernel thread, or it ends");
  EXPECT_EQ(found(102), "there is no process 102");
}

TEST_F(ProcessTable, IsNotLookedForWithoutEndOrInMemoryThatIsNotThere) {
  find_kernel();
  const std::string nowhere = "the kernel's list of processes leads nowhere";
  const uint64_t second = FakeLinux::kDirectMap + kSecond;
  guest_.put(kSecond + FakeLinux::kLink, second + FakeLinux::kLink); // round and round
  EXPECT_EQ(found(102), "process 102 is not among the first 32768 of the kernel's list");
  for (const uint64_t link :
       {uint64_t{0}, uint64_t{0x1000}, ~uint64_t{0}, FakeLinux::kDirectMap + (uint64_t{1} << 40),
        FakeLinux::kDirectMap + FakeLinux::kMemoryBytes - 4}) {
    guest_.put(kSecond + FakeLinux::kLink, link);
    EXPECT_EQ(found(102), nowhere) << link;
  }
  const std::string no_tables = "process 100 has no page tables that can be found";
  for (const uint64_t table : {uint64_t{0}, uint64_t{0x1000}, ~uint64_t{0}, FakeLinux::kDirectMap + 0x1008}) {
    guest_.put(FakeLinux::kTasks + 0x2000 + 8, table);
    EXPECT_EQ(found(100), no_tables) << table;
  }
  guest_.put(kFirst + 64, uint64_t{0x1000}); // the address space itself
  EXPECT_EQ(found(100), no_tables);
}

TEST_F(ProcessTable, NeedsTheKernelsTypes) {
  guest_.btf.clear();
  find_kernel();
  EXPECT_EQ(found(100), "no process can be found: the kernel carries no type information (BTF)");
}

} // namespace
} // namespace stopvisor::vmm::testing
