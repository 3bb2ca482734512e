// SPDX-License-Identifier: Apache-2.0
// A state is refused by a machine that is not like its own, with each difference by name.
#include "vmm/state/machine_match.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "vmm/machine_description.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kMiB = 1ULL << 20;

MachineDescription machine() {
  MachineDescription made;
  made.name = "vm";
  made.memory = {{Gpa{0}, 0xc000'0000}, {Gpa{0x1'0000'0000}, 64 * kMiB}};
  made.cpus = 4;
  made.pit = true;
  made.virtio = {{"stopvisor,block-v1", Gpa{0xd010'0000}, 0x1000, 12, {{"stopvisor,path", "/disk"}}}};
  return made;
}

// What restoring `saved` into `here`, with 2 vCPUs each, says.
std::string refusal(const MachineDescription& saved, const MachineDescription& here, uint32_t saved_cpus = 2) {
  const auto theirs = describe_machine(saved);
  const auto ours = describe_machine(here);
  if (!theirs || !ours)
    return "no description";
  const auto fits = check_machine({*theirs, saved_cpus}, {*ours, 2});
  return fits ? "" : fits.error().message();
}

TEST(MachineMatch, FitsAMachineOfOtherNamesAndPaths) {
  MachineDescription other = machine();
  other.name = "clone";
  other.kernel = "/elsewhere";
  other.bootargs = "quiet";
  other.memory_backing = "memfd";
  other.enabled_cpus = stopper::CpuMask::first_n(1);
  other.virtio[0].properties = {{"stopvisor,path", "/copy"}};
  EXPECT_EQ(refusal(machine(), other), "");
}

TEST(MachineMatch, RefusesEachDifferenceByName) {
  const std::string begin = "restore: the machine: it is not like the one that was saved: ";
  MachineDescription other = machine();
  other.memory[1].size_bytes = 65 * kMiB;
  EXPECT_EQ(refusal(machine(), other), begin + "memory@100000000: 65 MiB, saved: 64 MiB");
  other.memory = {{Gpa{0}, 100 * kMiB + 4096}};
  EXPECT_EQ(refusal(machine(), other),
            begin + "memory@0: 102404 KiB, saved: 3072 MiB; memory@100000000: none, saved: 64 MiB");
  other = machine();
  other.cpus = 8;
  EXPECT_EQ(refusal(machine(), other, 3), begin + "possible vCPUs: 8, saved: 4; vCPUs: 2, saved: 3");
  other = machine();
  other.pit = false;
  EXPECT_NE(refusal(machine(), other).find(begin + "PIT: none, saved: "), std::string::npos);
  other = machine();
  other.virtio[0].compatible = "stopvisor,net-v1";
  EXPECT_EQ(refusal(machine(), other),
            begin + "device virtio@d0100000: stopvisor,net-v1, saved: stopvisor,block-v1");
  other.virtio.clear();
  EXPECT_EQ(refusal(other, machine()), begin + "device virtio@d0100000: stopvisor,block-v1, saved: none");
}

TEST(MachineMatch, RefusesWhatIsNoDescription) {
  const auto tree = describe_machine(machine());
  ASSERT_TRUE(tree.has_value());
  for (const size_t length : {size_t{0}, size_t{7}, size_t{40}, tree->size() - 1}) {
    const std::vector<std::byte> part(tree->begin(), tree->begin() + static_cast<ptrdiff_t>(length));
    const auto fits = check_machine({part, 2}, {*tree, 2});
    ASSERT_FALSE(fits.has_value()) << length;
    EXPECT_NE(fits.error().message().find("description"), std::string::npos) << fits.error().message();
  }
}

TEST(MachineMatch, EndsALongListOfDifferences) {
  MachineDescription other = machine();
  other.virtio.clear();
  for (uint32_t slot = 0; slot < 200; ++slot)
    other.virtio.push_back({"stopvisor,net-v1", Gpa{0xd020'0000 + 0x1000ULL * slot}, 0x1000, 13, {}});
  const std::string text = refusal(other, machine());
  EXPECT_LT(text.size(), 1400U);
  EXPECT_TRUE(text.ends_with("; and more")) << text;
}

} // namespace
} // namespace stopvisor::vmm
