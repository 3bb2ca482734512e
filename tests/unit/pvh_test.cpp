// SPDX-License-Identifier: Apache-2.0
// The PVH loader: what a kernel finds in memory, read back as a kernel reads it, and each refusal.
#include "vmm/boot/pvh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "tests/unit/elf_builder.h"
#include "vmm/boot/memory_layout.h"
#include "vmm/boot/pvh_layout.h"

namespace stopvisor::vmm {
namespace {

using testing::ElfBuilder;
using testing::small_kernel;

constexpr uint64_t kMiB = 1 << 20;

std::vector<std::byte> filled(size_t size, uint8_t value) {
  return std::vector<std::byte>(size, std::byte{value});
}

class Pvh : public ::testing::Test {
protected:
  // Memory of this size; what is never written is never touched, so that sizes beyond the host's are fine.
  GuestMemory& memory(uint64_t size_bytes) {
    memory_.reset();
    auto created = GuestMemory::create(size_bytes, MemoryBacking::kAnonymous);
    EXPECT_TRUE(created) << created.error().message();
    memory_ = std::make_unique<GuestMemory>(*std::move(created));
    return *memory_;
  }
  template <typename T>
  T at(uint64_t gpa) {
    T value{};
    EXPECT_TRUE(memory_->read(Gpa{gpa}, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }
  std::string text_at(uint64_t gpa) {
    std::string text;
    for (char c = at<char>(gpa); c != '\0'; c = at<char>(++gpa))
      text.push_back(c);
    return text;
  }
  std::vector<std::byte> bytes_at(uint64_t gpa, size_t size) {
    std::vector<std::byte> bytes(size);
    EXPECT_TRUE(memory_->read(Gpa{gpa}, bytes));
    return bytes;
  }
  std::vector<pvh::MemoryMapEntry> memory_map(const pvh::StartInfo& info) {
    std::vector<pvh::MemoryMapEntry> map;
    map.reserve(info.memory_map_entries);
    for (uint32_t i = 0; i < info.memory_map_entries; ++i)
      map.push_back(at<pvh::MemoryMapEntry>(info.memory_map_gpa + i * sizeof(pvh::MemoryMapEntry)));
    return map;
  }
  void expect_refused(const BootImage& image, const std::string& reason, Status status = Status::kFailed) {
    const auto entry = load_pvh(*memory_, image, "k");
    ASSERT_FALSE(entry);
    EXPECT_NE(entry.error().message().find(reason), std::string::npos) << entry.error().message();
    EXPECT_EQ(entry.error().status, status);
  }

  std::unique_ptr<GuestMemory> memory_;
  std::vector<std::byte> kernel_ = small_kernel().build();
};

TEST_F(Pvh, KernelFindsItsSegmentAndStartInfo) {
  const auto entry = load_pvh(memory(16 * kMiB), {kernel_, {}, "console=ttyS0", {}}, "k");

  ASSERT_TRUE(entry) << entry.error().message();
  EXPECT_EQ(entry->rip, 0x10'0000u);
  EXPECT_EQ(bytes_at(0x10'0000, 64), filled(64, 0x90));
  const auto info = at<pvh::StartInfo>(entry->rbx);
  EXPECT_EQ(info.magic, 0x336ec578u);
  EXPECT_EQ(info.version, 1u);
  EXPECT_EQ(info.flags, 0u);
  EXPECT_EQ(info.rsdp_gpa, 0u);
  EXPECT_EQ(info.module_count, 0u);
  EXPECT_EQ(text_at(info.cmdline_gpa), "console=ttyS0");
}

TEST_F(Pvh, InitrdIsTheFirstModuleAndDeviceTreeTheLast) {
  const auto initrd = filled(5000, 0x11);
  const auto tree = filled(300, 0x22);
  const auto entry = load_pvh(memory(16 * kMiB), {kernel_, initrd, "", tree}, "k");

  ASSERT_TRUE(entry) << entry.error().message();
  const auto info = at<pvh::StartInfo>(entry->rbx);
  ASSERT_EQ(info.module_count, 2u);
  const auto first = at<pvh::Module>(info.module_list_gpa);
  const auto second = at<pvh::Module>(info.module_list_gpa + sizeof(pvh::Module));
  EXPECT_EQ(first.gpa, initrd_gpa(*memory_, initrd.size()).value().value);
  EXPECT_EQ(first.cmdline_gpa, 0u);
  EXPECT_EQ(bytes_at(first.gpa, first.size_bytes), initrd);
  EXPECT_EQ(bytes_at(second.gpa, second.size_bytes), tree);
  EXPECT_EQ(text_at(second.cmdline_gpa), "dtb");
  EXPECT_LE(first.gpa + first.size_bytes, second.gpa);
}

// No RAM entry holds what start_info points at or the device tree; they may be used to the guest's end.
TEST_F(Pvh, BootDataAndDeviceTreeAreReservedInTheMap) {
  const auto tree = filled(300, 0x22);
  const auto entry = load_pvh(memory(16 * kMiB), {kernel_, {}, "x", tree}, "k");
  ASSERT_TRUE(entry) << entry.error().message();
  const auto info = at<pvh::StartInfo>(entry->rbx);
  const uint64_t tree_gpa = at<pvh::Module>(info.module_list_gpa).gpa;

  const auto map = memory_map(info);

  for (const uint64_t gpa : {entry->rbx, info.cmdline_gpa, info.memory_map_gpa, info.module_list_gpa, tree_gpa}) {
    for (const auto& range : map) {
      const bool inside = gpa >= range.gpa && gpa < range.gpa + range.size_bytes;
      EXPECT_FALSE(inside && range.kind != pvh::MemoryKind::kReserved) << std::hex << gpa;
    }
  }
}

TEST_F(Pvh, MemoryMapCoversBothSlotsWithoutGapsOrOverlaps) {
  const auto tree = filled(1, 0x22);
  const auto entry = load_pvh(memory(kHoleStart + 64 * kMiB), {kernel_, {}, "", tree}, "k");
  ASSERT_TRUE(entry) << entry.error().message();

  const auto map = memory_map(at<pvh::StartInfo>(entry->rbx));

  uint64_t next = 0;
  for (const auto& range : map) {
    EXPECT_EQ(range.gpa, next == kHoleStart ? kHoleEnd : next);
    EXPECT_NE(range.size_bytes, 0u);
    next = range.gpa + range.size_bytes;
  }
  EXPECT_EQ(next, kHoleEnd + 64 * kMiB);
  EXPECT_EQ(map.back().kind, pvh::MemoryKind::kRam);
}

TEST_F(Pvh, SegmentOutsideMemoryIsNamed) {
  memory(4 * kMiB);
  ElfBuilder<> high = small_kernel();
  high.load(4 * kMiB - 8, {}, 16);
  expect_refused({high.build(), {}, "", {}},
                 "k: segment 2 (0x10 bytes at gpa:0x3ffff8) lies outside memory; --memory 5M would do");

  ElfBuilder<> in_the_hole = small_kernel();
  in_the_hole.load(kHoleStart, {}, 16);
  const auto kernel = in_the_hole.build();
  const auto refused = load_pvh(*memory_, {kernel, {}, "", {}}, "k");
  ASSERT_FALSE(refused);
  EXPECT_TRUE(refused.error().reason.ends_with("lies outside memory"))
      << refused.error().reason; // no memory would do
}

TEST_F(Pvh, SegmentOverTheBootDataIsNamed) {
  memory(4 * kMiB);
  ElfBuilder<> low = small_kernel();
  low.load(kBootDataGpa - 8, {}, 16);
  expect_refused({low.build(), {}, "", {}}, "segment 2 (0x10 bytes at gpa:0x8fff8) overlaps the boot data");
}

TEST_F(Pvh, KernelThatLeavesNoRoomForTheInitrdIsNamed) {
  memory(4 * kMiB);
  ElfBuilder<> large = small_kernel();
  large.load(2 * kMiB, {}, kMiB);
  const auto kernel = large.build();
  const auto initrd = filled(2 * kMiB, 1);
  expect_refused({kernel, initrd, "", {}}, "leaves no room for the initrd or the device tree at gpa:0x1c0000; "
                                           "--memory 6M would do");
  EXPECT_TRUE(load_pvh(memory(6 * kMiB), {kernel, initrd, "", {}}, "k"));
}

TEST_F(Pvh, InitrdThatDoesNotFitIsNamed) {
  memory(4 * kMiB);
  expect_refused({kernel_, filled(3 * kMiB, 1), "", {}}, "load initrd: does not fit into memory: 3145728 bytes");
}

TEST_F(Pvh, TooLittleMemoryIsNamed) {
  memory(kMiB);
  expect_refused({kernel_, {}, "", {}}, "memory: too small");
}

TEST_F(Pvh, CommandLineIsTakenUpToItsLimitAndRefusedBeyond) {
  const std::string longest(kMaxCmdlineBytes, 'x');
  const auto entry = load_pvh(memory(4 * kMiB), {kernel_, {}, longest, {}}, "k");
  ASSERT_TRUE(entry) << entry.error().message();
  EXPECT_EQ(text_at(at<pvh::StartInfo>(entry->rbx).cmdline_gpa), longest);

  expect_refused({kernel_, {}, longest + "x", {}}, "command line: too long: 2048 bytes, at most 2047",
                 Status::kUsage);
  expect_refused({kernel_, {}, std::string_view("a\0b", 3), {}}, "command line: holds a NUL", Status::kUsage);
}

TEST_F(Pvh, DeviceTreeBeyondItsReserveIsNamed) {
  memory(4 * kMiB);
  expect_refused({kernel_, {}, "", filled(kDeviceTreeReserveBytes + 1, 1)}, "device tree: too large");
}

} // namespace
} // namespace stopvisor::vmm
