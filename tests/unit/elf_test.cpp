// SPDX-License-Identifier: Apache-2.0
// The ELF reader: kernels it takes, and one test for each way a file can be wrong.
#include "vmm/boot/elf.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tests/unit/elf_builder.h"

namespace stopvisor::vmm {
namespace {

using testing::Elf32Classes;
using testing::Elf64Classes;
using testing::ElfBuilder;
using testing::pvh_note;
using testing::small_kernel;

// The message of the refusal, or "" where the file was taken.
std::string refusal(std::span<const std::byte> file) {
  const auto kernel = read_elf(file, "k");
  return kernel ? "" : kernel.error().message();
}

void expect_refused(std::span<const std::byte> file, const std::string& reason) {
  const std::string message = refusal(file);
  EXPECT_TRUE(message.starts_with("load kernel: k: ")) << message;
  EXPECT_NE(message.find(reason), std::string::npos) << message;
}

void expect_refused(const std::function<void(ElfBuilder<Elf64Classes>&)>& change, const std::string& reason) {
  auto builder = small_kernel();
  expect_refused(builder.build(change), reason);
}

TEST(Elf, SegmentAndEntryAreReadFromElf64) {
  const auto file = small_kernel().build();

  const auto kernel = read_elf(file, "k");

  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->pvh_entry, 0x10'0000u);
  ASSERT_EQ(kernel->segments.size(), 1u);
  EXPECT_EQ(kernel->segments[0].gpa, 0x10'0000u);
  EXPECT_EQ(kernel->segments[0].file_bytes, 64u);
  EXPECT_EQ(file[kernel->segments[0].file_offset], std::byte{0x90});
}

TEST(Elf, SegmentAndEntryAreReadFromElf32) {
  const auto kernel = read_elf(small_kernel<Elf32Classes>().build(), "k");
  ASSERT_TRUE(kernel) << kernel.error().message();
  EXPECT_EQ(kernel->pvh_entry, 0x10'0000u);
}

TEST(Elf, EntryIsFoundBehindOtherNotesInBothAlignments) {
  for (const size_t alignment : {4u, 8u}) {
    for (const uint32_t entry_bytes : {4u, 8u}) {
      ElfBuilder<Elf64Classes> builder;
      builder.load(0x10'0000, std::vector<std::byte>(64), 64);
      auto notes = pvh_note(0x1234, 1, alignment); // one byte: not taken for an entry, as its type says
      const uint32_t other_type = 7;
      std::memcpy(notes.data() + 8, &other_type, sizeof(other_type));
      const auto note = pvh_note(0x10'0010, entry_bytes, alignment);
      notes.insert(notes.end(), note.begin(), note.end());
      builder.note(notes, alignment);

      const auto kernel = read_elf(builder.build(), "k");

      ASSERT_TRUE(kernel) << kernel.error().message();
      EXPECT_EQ(kernel->pvh_entry, 0x10'0010u);
    }
  }
}

TEST(Elf, SegmentsAreSortedAndEmptyOnesLeftOut) {
  auto builder = small_kernel();
  builder.load(0x8000, {}, 0x100);
  builder.load(0x9000, {}, 0);
  const auto kernel = read_elf(builder.build(), "k");
  ASSERT_TRUE(kernel) << kernel.error().message();
  ASSERT_EQ(kernel->segments.size(), 2u);
  EXPECT_EQ(kernel->segments[0].gpa, 0x8000u);
  EXPECT_EQ(kernel->segments[1].gpa, 0x10'0000u);
}

TEST(Elf, FileThatIsNoElfIsRefused) {
  expect_refused(std::span<const std::byte>{}, "not an ELF file");
  expect_refused(std::vector<std::byte>(4096), "not an ELF file");
}

TEST(Elf, EveryTruncationIsRefused) {
  const auto file = small_kernel().build();
  for (size_t size = 0; size < file.size(); ++size)
    EXPECT_NE(refusal(std::span(file).first(size)), "") << size;
  expect_refused(std::span(file).first(20), "truncated");
  expect_refused(std::span(file).first(70), "truncated: program header 0");
  expect_refused(std::span(file).first(file.size() - 40), "truncated: segment 0");
  expect_refused(std::span(file).first(file.size() - 1), "truncated");
}

TEST(Elf, OtherArchitecturesAreRefused) {
  expect_refused([](auto& elf) { elf.header.e_machine = EM_AARCH64; }, "wrong architecture: ELF machine 183");
  expect_refused([](auto& elf) { elf.header.e_machine = EM_386; }, "wrong architecture");
  expect_refused([](auto& elf) { elf.header.e_ident[EI_DATA] = ELFDATA2MSB; }, "not little endian");
}

TEST(Elf, MalformedHeadersAreRefused) {
  expect_refused([](auto& elf) { elf.header.e_ident[EI_CLASS] = 9; }, "ELF class 9");
  expect_refused([](auto& elf) { elf.header.e_ident[EI_VERSION] = 0; }, "unknown ELF version");
  expect_refused([](auto& elf) { elf.header.e_type = ET_REL; }, "not an executable");
  expect_refused([](auto& elf) { elf.header.e_phnum = 0; }, "no program headers");
  expect_refused([](auto& elf) { elf.header.e_phnum = 0xffff; }, "too many program headers");
  expect_refused([](auto& elf) { elf.header.e_phentsize = 8; }, "program headers of 8 bytes");
  expect_refused([](auto& elf) { elf.header.e_phoff = UINT64_MAX - 8; }, "truncated: program header 0");
}

TEST(Elf, MalformedSegmentsAreRefused) {
  expect_refused([](auto& elf) { elf.programs[0].p_memsz = 63; }, "segment 0 is larger in the file");
  expect_refused([](auto& elf) { elf.programs[0].p_paddr = UINT64_MAX - 8; }, "segment 0 overflows");
  expect_refused([](auto& elf) { elf.programs[0].p_offset = UINT64_MAX - 8; }, "truncated: segment 0");
  expect_refused([](auto& elf) { elf.programs[0].p_type = PT_NULL; }, "no segment to load");
}

TEST(Elf, OverlappingSegmentsAreRefused) {
  auto builder = small_kernel();
  builder.load(0x10'0020, {}, 0x1000);
  expect_refused(builder.build(), "segment 0 and segment 2 overlap at gpa:0x100020");
}

TEST(Elf, KernelWithoutPvhNoteIsRefused) {
  expect_refused([](auto& elf) { elf.programs[1].p_type = PT_NULL; }, "no PVH note");
  expect_refused([](auto& elf) { elf.contents[1][12] = std::byte{'Y'}; }, "no PVH note");
}

TEST(Elf, MalformedPvhNotesAreRefused) {
  expect_refused([](auto& elf) { elf.contents[1][4] = std::byte{0xff}; }, "ends past its segment");
  expect_refused([](auto& elf) { elf.contents[1][4] = std::byte{2}; }, "an address of 2 bytes");
  expect_refused([](auto& elf) { elf.contents[1][0] = elf.contents[1][3] = std::byte{0xff}; }, "ends past its");
  expect_refused([](auto& elf) { elf.programs[1].p_offset = UINT64_MAX; }, "the notes end past the file's end");

  ElfBuilder<Elf64Classes> high;
  high.load(0x10'0000, std::vector<std::byte>(64), 64).note(pvh_note(0x1'0010'0000, 8));
  expect_refused(high.build(), "above 4 GiB");
}

TEST(Elf, EntryOutsideTheFilesBytesIsRefused) {
  for (const uint64_t entry : {0xf'ffffu, 0x10'0040u}) { // the second lies in .bss
    ElfBuilder<Elf64Classes> builder;
    builder.load(0x10'0000, std::vector<std::byte>(64), 128).note(pvh_note(entry));
    expect_refused(builder.build(), "lies in no loaded segment");
  }
}

// Every single byte of the headers set to hostile values: an answer, never a crash (run under ASan and UBSan).
TEST(Elf, AnyByteMayBeHostile) {
  const auto good = small_kernel().build();
  for (size_t at = 0; at < good.size(); ++at) {
    for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      auto file = good;
      file[at] = std::byte(value);
      const auto kernel = read_elf(file, "k");
      if (!kernel)
        continue;
      for (const ElfSegment& segment : kernel->segments)
        EXPECT_LE(segment.file_offset + segment.file_bytes, file.size());
    }
  }
}

} // namespace
} // namespace stopvisor::vmm
