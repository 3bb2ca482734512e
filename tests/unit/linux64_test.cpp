// SPDX-License-Identifier: Apache-2.0
// The 64-bit boot protocol's loader: what a kernel finds in memory, read back as a kernel reads it, and each
// refusal.
#include "vmm/boot/linux64.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>

#include "tests/unit/bzimage_builder.h"
#include "vmm/boot/memory_layout.h"
#include "vmm/boot/reset_vector.h"

namespace stopvisor::vmm {
namespace {

using testing::small_bzimage;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kGiB = 1 << 30;

class Linux64 : public ::testing::Test {
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
  // As the CPU walks the tables (Intel SDM volume 3, 4.5.4): 2 MiB pages alone.
  std::optional<uint64_t> walk(uint64_t cr3, uint64_t gva) {
    uint64_t table = cr3;
    for (const unsigned shift : {39U, 30U, 21U}) {
      const auto entry = at<uint64_t>(table + (gva >> shift & 0x1ff) * sizeof(uint64_t));
      if ((entry & 1) == 0)
        return std::nullopt;
      table = entry & 0x000f'ffff'ffff'f000;
      EXPECT_EQ((entry & 0x80) != 0, shift == 21);
    }
    return table | (gva & 0x1f'ffff);
  }
  void expect_refused(const BootImage& image, const std::string& reason, Status status = Status::kFailed) {
    const auto entry = load_linux64(*memory_, image, "k");
    ASSERT_FALSE(entry);
    EXPECT_NE(entry.error().message().find(reason), std::string::npos) << entry.error().message();
    EXPECT_EQ(entry.error().status, status);
  }

  std::unique_ptr<GuestMemory> memory_;
  std::vector<std::byte> kernel_ = small_bzimage().build();
  const std::vector<std::byte> initrd_ = std::vector<std::byte>(5000, std::byte{0x11});
  const std::vector<std::byte> tree_ = std::vector<std::byte>(300, std::byte{0x22});
};

TEST_F(Linux64, KernelStartsAtItsEntryWithTheZeroPage) {
  const auto entry = load_linux64(memory(64 * kMiB), {kernel_, {}, "console=ttyS0", {}, Gpa{0xe'0000}}, "k");

  ASSERT_TRUE(entry) << entry.error().message();
  EXPECT_EQ(entry->rip, 0x100'0200U);
  EXPECT_EQ(at<uint8_t>(entry->rip - 1), 0x90);
  EXPECT_EQ(at<uint8_t>(entry->rip), 0x91);
  const auto params = at<BootParams>(entry->rsi);
  // auto(): fields of a packed structure may lie where no reference to them can.
  EXPECT_EQ(auto(params.acpi_rsdp_addr), 0xe'0000U);
  EXPECT_EQ(auto(params.header.header), 0x5372'6448U); // "HdrS": the header came along
  EXPECT_EQ(auto(params.header.type_of_loader), 0xff);
  EXPECT_EQ(auto(params.header.ramdisk_size), 0U);
  EXPECT_EQ(auto(params.header.setup_data), 0U);
  EXPECT_EQ(text_at(params.header.cmd_line_ptr), "console=ttyS0");
  EXPECT_EQ(at<uint8_t>(entry->rsi + 0x1ef), 0); // the sentinel: nothing but the header was copied
}

TEST_F(Linux64, FirstFourGibibytesAreMappedToThemselves) {
  const auto entry = load_linux64(memory(64 * kMiB), {kernel_, {}, "", {}}, "k");

  ASSERT_TRUE(entry) << entry.error().message();
  for (const uint64_t gva :
       {uint64_t{0}, uint64_t{0x9'0000}, uint64_t{0x100'0200}, uint64_t{0xfee0'0000}, 4 * kGiB - 1})
    EXPECT_EQ(walk(entry->cr3, gva), gva);
  EXPECT_EQ(walk(entry->cr3, 4 * kGiB), std::nullopt);
}

TEST_F(Linux64, SegmentsLieInTheGdtWhereTheProtocolHasThem) {
  const auto entry = load_linux64(memory(64 * kMiB), {kernel_, {}, "", {}}, "k");

  ASSERT_TRUE(entry) << entry.error().message();
  EXPECT_EQ(entry->gdt_limit, 31);
  EXPECT_EQ(at<uint64_t>(entry->gdt_base + 0x10), 0x00af9b000000ffffU); // 64-bit code, read and execute
  EXPECT_EQ(at<uint64_t>(entry->gdt_base + 0x18), 0x00cf93000000ffffU); // data, read and write
}

TEST_F(Linux64, MemoryMapHasRamAroundTheHole) {
  const auto entry = load_linux64(memory(5 * kGiB), {kernel_, {}, "", tree_}, "k");

  ASSERT_TRUE(entry) << entry.error().message();
  const auto params = at<BootParams>(entry->rsi);
  ASSERT_EQ(params.e820_entries, 5);
  const auto expect = [&params](size_t i, uint64_t gpa, uint64_t end, uint32_t kind) {
    const E820Entry region = params.e820_table[i];
    EXPECT_EQ(uint64_t{region.gpa}, gpa) << i;
    EXPECT_EQ(region.gpa + region.size_bytes, end) << i;
    EXPECT_EQ(uint32_t{region.kind}, kind) << i;
  };
  expect(0, 0, 0x9'0000, 1);
  expect(1, 0x9'0000, 0x10'0000, 2);
  expect(2, 0x10'0000, 3 * kGiB - uint64_t{256} * 1024, 1);
  expect(3, 3 * kGiB - uint64_t{256} * 1024, 3 * kGiB, 2);
  expect(4, 4 * kGiB, 6 * kGiB, 1);
}

TEST_F(Linux64, InitrdLiesBelowTheKernelsLimit) {
  const auto entry = load_linux64(memory(4 * kGiB), {kernel_, initrd_, "", {}}, "k");

  ASSERT_TRUE(entry) << entry.error().message();
  const auto params = at<BootParams>(entry->rsi);
  EXPECT_EQ(auto(params.header.ramdisk_size), initrd_.size());
  EXPECT_EQ(auto(params.header.ramdisk_image), (2 * kGiB - initrd_.size()) & ~0xfffULL);
  EXPECT_EQ(bytes_at(params.header.ramdisk_image, initrd_.size()), initrd_);
  EXPECT_EQ(auto(params.header.ramdisk_image),
            initrd_gpa(*memory_, initrd_.size(), small_bzimage().header.initrd_addr_max).value().value);
}

TEST_F(Linux64, DeviceTreeGoesAlongAsSetupData) {
  const auto entry = load_linux64(memory(64 * kMiB), {kernel_, initrd_, "", tree_}, "k");

  ASSERT_TRUE(entry) << entry.error().message();
  const auto params = at<BootParams>(entry->rsi);
  const auto head = at<SetupData>(params.header.setup_data);
  EXPECT_EQ(head.next, 0U);
  EXPECT_EQ(head.type, 2U); // SETUP_DTB
  EXPECT_EQ(head.length, tree_.size());
  EXPECT_EQ(bytes_at(params.header.setup_data + sizeof head, tree_.size()), tree_);
  EXPECT_LE(params.header.ramdisk_image + initrd_.size(), auto(params.header.setup_data));
}

TEST_F(Linux64, PreferredAddressIsRoundedUpForARelocatableKernelAlone) {
  auto kernel = small_bzimage();
  kernel.header.pref_address = 0x110'0000;
  kernel_ = kernel.build();
  auto entry = load_linux64(memory(64 * kMiB), {kernel_, {}, "", {}}, "k");
  ASSERT_TRUE(entry) << entry.error().message();
  EXPECT_EQ(entry->rip, 0x120'0200U);

  kernel.header.relocatable_kernel = 0;
  kernel_ = kernel.build();
  entry = load_linux64(memory(64 * kMiB), {kernel_, {}, "", {}}, "k");
  ASSERT_TRUE(entry) << entry.error().message();
  EXPECT_EQ(entry->rip, 0x110'0200U);
}

TEST_F(Linux64, KernelLargerThanMemoryIsRefused) {
  memory(17 * kMiB); // ends where the kernel does
  EXPECT_TRUE(load_linux64(*memory_, {kernel_, {}, "", {}}, "k"));
  memory(17 * kMiB - 4096);
  expect_refused({kernel_, {}, "", {}}, "load kernel: k: larger than memory: it needs 0x100000 bytes from "
                                        "gpa:0x1000000 on, and what it may use ends at gpa:0x10ff000; "
                                        "--memory 17M would do");
  memory(8 * kMiB);
  expect_refused({kernel_, {}, "", {}}, "larger than memory");
  auto huge = small_bzimage();
  huge.header.pref_address = 1ULL << 62;
  kernel_ = huge.build();
  const auto refused = load_linux64(*memory_, {kernel_, {}, "", {}}, "k");
  ASSERT_FALSE(refused);
  EXPECT_TRUE(refused.error().reason.ends_with("ends at gpa:0x800000"))
      << refused.error().reason; // no memory would do
  memory(64 * kMiB);             // there is room, but for the initrd
  kernel_ = small_bzimage().build();
  const std::vector<std::byte> initrd(48 * kMiB);
  expect_refused({kernel_, initrd, "", {}}, "; --memory 66M would do");
  EXPECT_TRUE(load_linux64(memory(66 * kMiB), {kernel_, initrd, "", {}}, "k"));
}

TEST_F(Linux64, InitrdThatDoesNotFitIsRefused) {
  memory(32 * kMiB);
  const std::vector<std::byte> initrd(32 * kMiB);
  expect_refused({kernel_, initrd, "", {}}, "load initrd: does not fit into memory");
  auto kernel = small_bzimage();
  kernel.header.initrd_addr_max = 0x10'0fff; // one page above 1 MiB
  kernel_ = kernel.build();
  expect_refused({kernel_, initrd_, "", {}}, "load initrd: does not fit into memory: 5000 bytes, at most 4096");
  kernel.header.initrd_addr_max = 0;
  kernel_ = kernel.build();
  expect_refused({kernel_, initrd_, "", {}}, "at most 0");
}

TEST_F(Linux64, CommandLineLongerThanTheKernelTakesIsRefused) {
  auto kernel = small_bzimage();
  kernel.header.cmdline_size = 10;
  kernel_ = kernel.build();
  EXPECT_TRUE(load_linux64(memory(64 * kMiB), {kernel_, {}, "0123456789", {}}, "k"));
  expect_refused({kernel_, {}, "0123456789a", {}}, "load kernel: command line: too long: 11 bytes, at most 10",
                 Status::kUsage);
  expect_refused({kernel_, {}, std::string_view("a\0b", 3), {}}, "holds a NUL", Status::kUsage);
  kernel.header.cmdline_size = UINT32_MAX;
  kernel_ = kernel.build();
  expect_refused({kernel_, {}, std::string(0x8000, 'x'), {}}, "too long", Status::kUsage);
}

TEST_F(Linux64, ResetVectorWritesTheResetRegister) {
  memory(4 * kMiB);
  ASSERT_TRUE(write_reset_vector(*memory_));
  // mov $0x642, %dx; mov $1, %al; out %al, %dx
  EXPECT_EQ(at<uint64_t>(0xf'fff0) & 0xffff'ffff'ffff, 0xee01'b006'42baULL);
}

TEST_F(Linux64, KernelThatCannotBeReadIsRefused) {
  memory(64 * kMiB);
  expect_refused({std::span(kernel_).first(3000), {}, "", {}}, "load kernel: k: truncated");
}

TEST_F(Linux64, DeviceTreeLargerThanItsReserveIsRefused) {
  memory(64 * kMiB);
  const std::vector<std::byte> tree(uint64_t{256} * 1024 - 15);
  expect_refused({kernel_, {}, "", tree}, "device tree: too large");
}

} // namespace
} // namespace stopvisor::vmm
