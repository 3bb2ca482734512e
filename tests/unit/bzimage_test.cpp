// SPDX-License-Identifier: Apache-2.0
// The reader of bzImage files, and how kernels are told apart: what is taken, and the words of each refusal.
#include "vmm/boot/bzimage.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/unit/bzimage_builder.h"
#include "tests/unit/elf_builder.h"
#include "vmm/boot/kernel_kind.h"

namespace stopvisor::vmm {
namespace {

using testing::BzImageBuilder;
using testing::small_bzimage;

void expect_refused(std::span<const std::byte> file, const std::string& reason) {
  const auto read = read_bzimage(file, "k");
  ASSERT_FALSE(read) << "taken, wanted: " << reason;
  EXPECT_EQ(read.error().operation, "load kernel");
  EXPECT_EQ(read.error().object, "k");
  EXPECT_EQ(read.error().status, Status::kFailed);
  EXPECT_NE(read.error().reason.find(reason), std::string::npos) << read.error().reason;
}

void expect_refused(const BzImageBuilder& builder, const std::string& reason) {
  expect_refused(builder.build(), reason);
}

// A file that has `bytes` at `offset`, and zeros elsewhere.
std::vector<std::byte> file_with(size_t offset, std::string_view bytes, size_t size = 4096) {
  std::vector<std::byte> file(size);
  std::memcpy(file.data() + offset, bytes.data(), bytes.size());
  return file;
}

std::string kind_refusal(std::span<const std::byte> file) {
  const auto kind = kernel_kind(file, "k");
  return kind ? "taken" : kind.error().message();
}

TEST(BzImage, SaysWhatTheKernelAsksOfItsLoader) {
  const auto file = small_bzimage().build();

  const auto image = read_bzimage(file, "k");

  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(image->code.data(), file.data() + 5 * kSectorBytes);
  EXPECT_EQ(image->code.size(), 4096U);
  EXPECT_EQ(image->setup_header.data(), file.data() + kSetupHeaderOffset);
  EXPECT_EQ(image->setup_header.size(), sizeof(SetupHeader));
  EXPECT_TRUE(image->relocatable);
  EXPECT_EQ(image->preferred_gpa, 0x100'0000U);
  EXPECT_EQ(image->alignment, 0x20'0000U);
  EXPECT_EQ(image->memory_bytes, 0x10'0000U);
  EXPECT_EQ(image->max_cmdline_bytes, 2047U);
  EXPECT_EQ(image->highest_initrd_byte, 0x7fff'ffffU);
}

TEST(BzImage, HasFourSetupSectorsWhereItSaysNone) {
  auto file = small_bzimage().build();
  file[kSetupHeaderOffset] = std::byte{0};

  const auto image = read_bzimage(file, "k");

  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(image->code.data(), file.data() + 5 * kSectorBytes);
}

TEST(BzImage, LeavesOutASignatureBehindTheCode) {
  auto file = small_bzimage().build();
  file.resize(file.size() + 1000);

  const auto image = read_bzimage(file, "k");

  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(image->code.size(), 4096U);
}

TEST(BzImage, IsRefusedAtEveryLengthItIsCutTo) {
  const auto file = small_bzimage().build();
  // The size of the code is given in 16 bytes, rounded up, so that the last 15 may be missing.
  for (size_t length = 0; length + 16 <= file.size(); ++length)
    expect_refused(std::span(file).first(length), "truncated");
}

TEST(BzImage, IsRefusedWithoutA64BitEntry) {
  auto kernel = small_bzimage();
  kernel.header.xloadflags = 0;
  expect_refused(kernel, "32-bit only: it has no 64-bit entry");
  kernel = small_bzimage();
  kernel.header.version = 0x020b;
  expect_refused(kernel, "32-bit only: boot protocol 2.11");
  kernel.header.version = 0x0203;
  expect_refused(kernel, "32-bit only: boot protocol 2.03");
}

TEST(BzImage, IsRefusedWhereItContradictsItself) {
  const auto with = [](auto change) {
    auto kernel = small_bzimage();
    change(kernel.header);
    return kernel;
  };
  expect_refused(with([](SetupHeader& h) { h.boot_flag = 0; }), "no boot flag");
  expect_refused(with([](SetupHeader& h) { h.header = 0; }), "no \"HdrS\"");
  expect_refused(with([](SetupHeader& h) { h.loadflags = 0; }), "below 1 MiB");
  expect_refused(with([](SetupHeader& h) { h.jump = 0x10eb; }), "setup header ends at 0x212");
  expect_refused(with([](SetupHeader& h) { h.jump = 0xffeb; }), "setup header ends at 0x301");
  expect_refused(with([](SetupHeader& h) { h.kernel_alignment = 0x30'0000; }), "kernel_alignment 0x300000");
  expect_refused(with([](SetupHeader& h) { h.kernel_alignment = 0; }), "kernel_alignment 0x0");
  expect_refused(with([](SetupHeader& h) { h.kernel_alignment = 1U << 31; }), "kernel_alignment 0x80000000");
  expect_refused(with([](SetupHeader& h) { h.pref_address = 0x1000; }), "pref_address 0x1000");
  expect_refused(with([](SetupHeader& h) { h.pref_address = UINT64_MAX; }), "pref_address 0xffffffffffffffff");
  expect_refused(with([](SetupHeader& h) { h.init_size = 4095; }), "init_size 0xfff is less than its 0x1000");
  expect_refused(with([](SetupHeader& h) { h.payload_offset = 4097; }), "payload ends past");
  expect_refused(with([](SetupHeader& h) { h.payload_length = 4097; }), "payload ends past");
  expect_refused(with([](SetupHeader& h) { h.cmdline_size = 0; }), "cmdline_size 0");
  expect_refused(with([](SetupHeader& h) { h.syssize = 2; }), "ends before the 64-bit entry");
  expect_refused(with([](SetupHeader& h) { h.syssize = UINT32_MAX; }), "truncated: 4096 of 68719476720 bytes");
}

// A reader that trusts what it should not leaves the file's bytes here, which the sanitizers see.
TEST(BzImage, SurvivesAnyBitFlippedAndAnyHeader) {
  const auto file = small_bzimage().build();
  const auto inside = [](std::span<const std::byte> part, std::span<const std::byte> whole) {
    return part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size();
  };
  const auto check = [&inside](const std::vector<std::byte>& changed) {
    const auto kind = kernel_kind(changed, "k");
    const auto image = read_bzimage(changed, "k");
    if (!image)
      return;
    EXPECT_TRUE(kind && *kind == KernelKind::kBzImage);
    EXPECT_TRUE(inside(image->code, changed));
    EXPECT_TRUE(inside(image->setup_header, changed));
    EXPECT_GT(image->code.size(), kEntry64Offset);
    EXPECT_LE(image->setup_header.size(), kSetupHeaderEnd - kSetupHeaderOffset);
    EXPECT_GE(image->memory_bytes, image->code.size());
  };
  for (size_t bit = kSetupHeaderOffset * 8; bit < kSetupHeaderEnd * 8; ++bit) {
    auto changed = file;
    changed[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    check(changed);
  }
  std::mt19937 random(1); // the same each time
  for (unsigned round = 0; round < 20'000; ++round) {
    auto changed = file;
    for (unsigned i = 0; i < 1 + round % 8; ++i)
      changed[kSetupHeaderOffset + random() % (kSetupHeaderEnd - kSetupHeaderOffset)] =
          static_cast<std::byte>(random());
    changed.resize(random() % 4 == 0 ? random() % changed.size() : changed.size());
    check(changed);
  }
}

TEST(KernelKind, IsToldByContent) {
  const auto elf = testing::small_kernel().build();
  const auto bzimage = small_bzimage().build();
  EXPECT_EQ(kernel_kind(elf, "vmlinuz"), KernelKind::kElf);
  EXPECT_EQ(kernel_kind(bzimage, "vmlinux"), KernelKind::kBzImage);
}

TEST(KernelKind, NamesOtherArchitectures) {
  EXPECT_EQ(kind_refusal(file_with(0x38, "ARM\x64")),
            "load kernel: k: wrong architecture: an arm64 kernel, wanted x86-64");
  EXPECT_NE(kind_refusal(file_with(0x38, "RSC\x05")).find("riscv"), std::string::npos);
  EXPECT_NE(kind_refusal(file_with(0x24, "\x18\x28\x6f\x01")).find("32-bit arm"), std::string::npos);
}

TEST(KernelKind, NamesFilesThatHoldAKernelButAreNone) {
  EXPECT_NE(kind_refusal(file_with(0, "\x1f\x8b\x08")).find("compressed by gzip"), std::string::npos);
  EXPECT_NE(kind_refusal(file_with(0, "\x28\xb5\x2f\xfd")).find("compressed by zstd"), std::string::npos);
  EXPECT_NE(kind_refusal(file_with(4, "zimg")).find("EFI zboot"), std::string::npos);
}

TEST(KernelKind, RefusesWhatIsNoKernel) {
  EXPECT_EQ(kind_refusal(file_with(0, "#!/bin/sh\n")),
            "load kernel: k: not a kernel: neither an ELF file nor a Linux bzImage");
  EXPECT_NE(kind_refusal({}).find("not a kernel"), std::string::npos);
  EXPECT_NE(kind_refusal(file_with(0, "MZ", 0x205)).find("truncated"), std::string::npos);
}

} // namespace
} // namespace stopvisor::vmm
