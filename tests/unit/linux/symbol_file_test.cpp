// SPDX-License-Identifier: Apache-2.0
// Symbols from files, and whether they are the guest's.
#include "vmm/linux/symbol_file.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "tests/unit/linux/fake_linux.h"

namespace stopvisor::vmm {
namespace {

using testing::append;
using testing::append_number;
using testing::Buffer;
using testing::FakeLinux;

// A file that is gone after the test.
class TestFile {
public:
  explicit TestFile(std::span<const std::byte> bytes) {
    const int fd = ::mkstemp(path_.data());
    EXPECT_GE(fd, 0);
    EXPECT_EQ(::write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }
  explicit TestFile(std::string_view text) : TestFile(std::as_bytes(std::span(text))) {}
  ~TestFile() { ::unlink(path_.c_str()); }
  TestFile(const TestFile&) = delete;
  TestFile& operator=(const TestFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

private:
  std::string path_ = "/tmp/stopvisor-symbols-XXXXXX";
};

std::string reason_of(const TestFile& file) {
  const auto read = read_symbol_file("regs", file.path());
  return read ? "read" : read.error().reason;
}

// The symbols of a FakeLinux at the addresses it is linked to, as a System.map.
std::string map_of(const FakeLinux& guest) {
  std::string text;
  for (const auto& [name, address] : guest.symbols()) {
    std::array<char, 40> line{};
    std::snprintf(line.data(), line.size(), "%016llx D ",
                  static_cast<unsigned long long>(address >> 63 == 0 ? address : address - guest.slide));
    text += line.data() + name + "\n";
  }
  return text + "ffffffff81000040 T function_2\n";
}

// The same as a vmlinux with `build_id`.
Buffer vmlinux_of(const FakeLinux& guest, uint64_t build_id) {
  Buffer strings{std::byte{0}}, symbols(sizeof(Elf64_Sym)), notes;
  for (const auto& [name, address] : guest.symbols()) {
    Elf64_Sym symbol{};
    symbol.st_name = static_cast<uint32_t>(strings.size());
    symbol.st_info = ELF64_ST_INFO(STB_GLOBAL, STT_OBJECT);
    symbol.st_shndx = 1;
    symbol.st_value = address >> 63 == 0 ? address : address - guest.slide;
    append_number(symbols, symbol);
    append(strings, std::as_bytes(std::span(name.c_str(), name.size() + 1)));
  }
  for (const uint32_t number : {4U, 8U, uint32_t{NT_GNU_BUILD_ID}, 0x00554e47U})
    append_number(notes, number);
  append_number(notes, build_id);
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_machine = EM_X86_64;
  header.e_shoff = sizeof(header);
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shnum = 4;
  uint64_t at = sizeof(header) + 4 * sizeof(Elf64_Shdr);
  const auto section = [&](uint32_t type, size_t size, uint32_t link, uint64_t entry) {
    Elf64_Shdr result{};
    result.sh_type = type;
    result.sh_offset = at;
    result.sh_size = size;
    result.sh_link = link;
    result.sh_entsize = entry;
    at += size;
    return result;
  };
  Buffer file;
  append_number(file, header);
  append_number(file, Elf64_Shdr{});
  append_number(file, section(SHT_SYMTAB, symbols.size(), 2, sizeof(Elf64_Sym)));
  append_number(file, section(SHT_STRTAB, strings.size(), 0, 0));
  append_number(file, section(SHT_NOTE, notes.size(), 0, 0));
  append(file, symbols);
  append(file, strings);
  append(file, notes);
  return file;
}

constexpr uint64_t kBuildId = 0x0807'0605'0403'0201;

std::expected<LinuxKernel, std::string> find(FakeLinux& guest, const TestFile& file) {
  const auto symbols = read_symbol_file("regs", file.path());
  if (!symbols)
    return std::unexpected(symbols.error().message());
  const std::vector<Registers> vcpus = guest.all_registers();
  return LinuxKernel::find(guest.memory(), vcpus, &*symbols);
}

TEST(SymbolFile, SystemMapIsFitToTheGuestsSlide) {
  for (const bool with_kallsyms : {true, false}) {
    FakeLinux guest;
    guest.with_kallsyms = with_kallsyms;
    guest.build();
    const auto kernel = find(guest, TestFile(map_of(guest)));
    ASSERT_TRUE(kernel) << kernel.error();
    EXPECT_EQ(kernel->slide(), guest.slide);
    EXPECT_EQ(kernel->symbols().address_of("linux_banner"), guest.text() + FakeLinux::kBanner);
    EXPECT_EQ(kernel->symbols().address_of("current_task"), FakeLinux::kCurrentTask);
  }
}

TEST(SymbolFile, VmlinuxIsFitByItsBuildId) {
  FakeLinux guest;
  guest.with_kallsyms = false;
  guest.build();
  const auto kernel = find(guest, TestFile(vmlinux_of(guest, kBuildId)));
  ASSERT_TRUE(kernel) << kernel.error();
  EXPECT_EQ(kernel->slide(), guest.slide);
}

TEST(SymbolFile, FileOfAnotherBuildIsRefused) {
  FakeLinux guest;
  guest.build();
  auto kernel = find(guest, TestFile(vmlinux_of(guest, 1)));
  ASSERT_FALSE(kernel);
  EXPECT_EQ(kernel.error(), "the file is of another build: its build ID is 0100000000000000, the guest's is "
                            "0102030405060708");
  std::string map = map_of(guest);
  map.replace(map.find("ffffffff81000040 T"), 18, "ffffffff81000050 T");
  kernel = find(guest, TestFile(map));
  ASSERT_FALSE(kernel);
  EXPECT_EQ(kernel.error(), "the file is of another build: 1 of 1 functions lie elsewhere in the guest");
  kernel = find(guest, TestFile("ffffffff81010800 D linux_banner\n"));
  ASSERT_FALSE(kernel);
  EXPECT_EQ(kernel.error(),
            "the file is of another build: there is no slide at which the file's linux_banner reads "
            "\"Linux version ...\"");
}

// A guest that maps one page with a banner everywhere.
TEST(SymbolFile, FewSlidesAreTriedWhateverTheGuestMaps) {
  const TestFile file("ffffffff81000800 D linux_banner\n");
  const auto symbols = read_symbol_file("regs", file.path());
  ASSERT_TRUE(symbols) << symbols.error().message();
  SymbolTable own; // has no function of the file's
  ASSERT_TRUE(own.add(kUsualTextAddress, 'T', "other"));
  own.sort();
  const auto guest_with = [](uint64_t banners) {
    std::vector<KernelImage::Part> parts;
    for (uint64_t i = 0; i < banners; ++i) {
      Buffer page(4096);
      constexpr std::string_view kBanner = "Linux version 6.1.0 (somebody)\n";
      std::memcpy(page.data() + 0x800, kBanner.data(), kBanner.size());
      parts.push_back({kUsualTextAddress + i * (2ULL << 20), std::move(page)});
    }
    return KernelImage::of(std::move(parts));
  };
  EXPECT_EQ(fit_to_image(*symbols, guest_with(8), &own).error(),
            "the file is of another build: the guest's own symbols have no function of the file's");
  EXPECT_EQ(fit_to_image(*symbols, guest_with(9), &own).error(),
            "at more than 8 slides the file's linux_banner reads \"Linux version ...\"");
}

TEST(SymbolFile, SystemMapIsReadStrictly) {
  const std::string good = "ffffffff81000000 T _text\n";
  EXPECT_EQ(reason_of(TestFile(good)), "read");
  const std::string start = "it is no ELF, and as a System.map its line 2 ";
  const std::string shape = start + "is not \"ADDRESS TYPE NAME\" with an address of 16 digits";
  for (const char* line : {"\n", "81000000 T f\n", "ffffffff81000000 T \n", "ffffffff81000000T f\n",
                           "ffffffff8100000g T f\n", "-fffffff81000000 T f\n", "ffffffff81000000 TT f\n"})
    EXPECT_EQ(reason_of(TestFile(good + line)), shape) << line;
  EXPECT_EQ(reason_of(TestFile(good + "ffffffff81000000 T f")), start + "has no end: the file is cut off");
  EXPECT_EQ(reason_of(TestFile(good + "ffffffff81000000 T a b\n")),
            start + "has a name that no symbol has, or is one symbol too many");
  EXPECT_EQ(reason_of(TestFile("")), "there are no symbols in it");
  // What the packages of Debian have in its place.
  EXPECT_NE(
      reason_of(TestFile("ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n")),
      "read");
}

TEST(SymbolFile, WhatIsNoFileIsNamed) {
  EXPECT_EQ(read_symbol_file("regs", "/nowhere/x").error().message(),
            "regs: --symbols: /nowhere/x: No such file or directory");
  EXPECT_EQ(read_symbol_file("regs", "/tmp").error().reason, "is no regular file");
  EXPECT_EQ(read_symbol_file("regs", "/dev/null").error().reason, "is no regular file");
}

TEST(SymbolFile, VmlinuxThatIsCutOffOrWrongIsRefused) {
  FakeLinux guest;
  const Buffer good = vmlinux_of(guest, kBuildId);
  ASSERT_EQ(reason_of(TestFile(good)), "read");
  for (size_t length = 4; length < good.size(); length += 13)
    EXPECT_NE(reason_of(TestFile(std::span(good).first(length))), "read") << length;
  Buffer bytes = good;
  bytes[EI_CLASS] = std::byte{ELFCLASS32};
  EXPECT_EQ(reason_of(TestFile(bytes)), "it is no ELF of 64 bits for x86-64");
  bytes = good;
  const size_t first_section = sizeof(Elf64_Ehdr) + sizeof(Elf64_Shdr);
  bytes[first_section + offsetof(Elf64_Shdr, sh_type)] = std::byte{SHT_PROGBITS};
  EXPECT_EQ(reason_of(TestFile(bytes)), "it has no symbol table: it is stripped");
  bytes = good;
  bytes[first_section + offsetof(Elf64_Shdr, sh_link)] = std::byte{9};
  EXPECT_EQ(reason_of(TestFile(bytes)), "its symbol table is malformed");
  bytes = good;
  bytes[first_section + offsetof(Elf64_Shdr, sh_size) + 5] = std::byte{1};
  EXPECT_EQ(reason_of(TestFile(bytes)), "the symbol table is larger than 262144 KiB");
  bytes = good;
  bytes[first_section + offsetof(Elf64_Shdr, sh_offset) + 5] = std::byte{1};
  EXPECT_EQ(reason_of(TestFile(bytes)), "the symbol table lies outside the file");
  bytes = good;
  const size_t name_of_first = sizeof(Elf64_Ehdr) + 4 * sizeof(Elf64_Shdr) + sizeof(Elf64_Sym);
  bytes[name_of_first + 3] = std::byte{0x7f};
  EXPECT_EQ(reason_of(TestFile(bytes)), "symbol 1 has a name outside the table of names");
}

} // namespace
} // namespace stopvisor::vmm
