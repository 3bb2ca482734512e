// SPDX-License-Identifier: Apache-2.0
// Manifests from two builds of one file, and what a stranger's ELF file may say.
#include <gtest/gtest.h>

#include <elf.h>

#include <cstring>
#include <random>

#include "tools/patch/build.h"
#include "tools/patch/elf_image.h"

namespace stopvisor::patch {
namespace {

using vmm::Status;

constexpr uint64_t kText = 0xffff'ffff'8100'0000;
constexpr uint64_t kData = 0xffff'ffff'8200'0000;
constexpr uint64_t kTextPhysical = 0x100'0000;
constexpr size_t kNoteBytes = 16 + 20; // header and "GNU", then an ID of 20 bytes

// A small kernel: text with two functions and a build ID's note in it, data with one variable.
struct Kernel {
  Bytes text = Bytes(0x100, std::byte{0x90});
  Bytes data = Bytes(0x40);
  std::byte id{0x11};

  [[nodiscard]] Bytes file() const {
    Bytes file(sizeof(Elf64_Ehdr) + 3 * sizeof(Elf64_Phdr));
    const auto append = [&](const void* bytes, size_t count) {
      const size_t at = file.size();
      file.resize(at + count);
      std::memcpy(file.data() + at, bytes, count);
      return at;
    };
    const std::string names = std::string("\0first\0second\0value\0twin\0", 25);
    Bytes whole_text = text;
    const Elf64_Nhdr note{4, 20, 3}; // NT_GNU_BUILD_ID
    std::memcpy(whole_text.data() + 0x80, &note, sizeof note);
    std::memcpy(whole_text.data() + 0x8c, "GNU", 4);
    std::fill_n(whole_text.begin() + 0x90, 20, id);
    const size_t text_at = append(whole_text.data(), whole_text.size());
    const size_t data_at = append(data.data(), data.size());
    const auto symbol = [](uint32_t name, unsigned type, uint64_t value, uint64_t size) {
      return Elf64_Sym{name, static_cast<unsigned char>(type), 0, 1, value, size};
    };
    const Elf64_Sym symbols[] = {{},
                                 symbol(1, STT_FUNC, kText, 0x20),
                                 symbol(7, STT_FUNC, kText + 0x20, 0x20),
                                 symbol(14, STT_OBJECT, kData, 8),
                                 symbol(20, STT_OBJECT, kData + 8, 8), // two of one name
                                 symbol(20, STT_OBJECT, kData + 16, 8)};
    const size_t symbols_at = append(symbols, sizeof symbols);
    const size_t names_at = append(names.data(), names.size());
    Elf64_Shdr sections[3] = {};
    sections[1].sh_type = SHT_SYMTAB;
    sections[1].sh_offset = symbols_at;
    sections[1].sh_size = sizeof symbols;
    sections[1].sh_link = 2;
    sections[2].sh_type = SHT_STRTAB;
    sections[2].sh_offset = names_at;
    sections[2].sh_size = names.size();
    const size_t sections_at = append(sections, sizeof sections);
    const Elf64_Phdr programs[] = {
        {PT_LOAD, PF_R | PF_X, text_at, kText, kTextPhysical, text.size(), text.size(), 0x1000},
        {PT_LOAD, PF_R | PF_W, data_at, kData, kTextPhysical + 0x100'0000, data.size(), 0x1000, 0x1000},
        {PT_NOTE, PF_R, text_at + 0x80, kText + 0x80, kTextPhysical + 0x80, kNoteBytes, kNoteBytes, 4}};
    Elf64_Ehdr header{};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_ident[EI_VERSION] = EV_CURRENT;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_phoff = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 3;
    header.e_shoff = sections_at;
    header.e_shentsize = sizeof(Elf64_Shdr);
    header.e_shnum = 3;
    std::memcpy(file.data(), &header, sizeof header);
    std::memcpy(file.data() + sizeof header, programs, sizeof programs);
    return file;
  }
};

std::expected<Manifest, vmm::Error> build(const Bytes& before, const Bytes& after, Naming naming = Naming::kSymbols,
                                          const std::string& space = "") {
  return build_manifest({"old", before}, {"new", after}, {"fix", "2", naming, space});
}

class BuildTest : public ::testing::Test {
protected:
  std::string refusal(Naming naming = Naming::kSymbols) {
    const auto built = build(before.file(), after.file(), naming);
    return built ? "" : built.error().reason;
  }
  Kernel before, after;
};

TEST_F(BuildTest, DifferencesBecomeWritesNamedBySymbols) {
  after.text[0x24] = std::byte{0xc3};
  after.text[0x26] = std::byte{0xc3}; // so near that it is one write
  after.data[3] = std::byte{7};
  after.id = std::byte{0x22};
  const auto built = build(before.file(), after.file());
  ASSERT_TRUE(built.has_value()) << built.error().message();
  EXPECT_EQ(built->target.kind, Target::Kind::kBuildId);
  EXPECT_EQ(built->target.build_id, Bytes(20, std::byte{0x11}));
  ASSERT_EQ(built->writes.size(), 2U); // and the build ID's own bytes are none
  const Write& code = built->writes[0];
  EXPECT_EQ(to_string(code.at), "sym:second+0x4");
  EXPECT_EQ(code.kind, SiteKind::kCode);
  EXPECT_EQ(code.expect, Bytes(3, std::byte{0x90}));
  EXPECT_EQ(code.operation.bytes, (Bytes{std::byte{0xc3}, std::byte{0x90}, std::byte{0xc3}}));
  ASSERT_TRUE(code.function.has_value());
  EXPECT_EQ(to_string(code.function->at), "sym:second");
  EXPECT_EQ(code.function->size, 0x20U);
  EXPECT_EQ(to_string(built->writes[1].at), "sym:value+0x3");
  EXPECT_EQ(built->writes[1].kind, SiteKind::kData);
  const auto again = read_manifest("", write_manifest(*built));
  ASSERT_TRUE(again.has_value()) << again.error().message();
  EXPECT_EQ(write_manifest(*again), write_manifest(*built));
}

TEST_F(BuildTest, AddressesAreNamedAsItIsAsked) {
  after.text[0x24] = std::byte{0xc3};
  const auto physical = build(before.file(), after.file(), Naming::kPhysical);
  ASSERT_TRUE(physical.has_value());
  EXPECT_EQ(to_string(physical->writes[0].at), "gpa:0x1000024");
  EXPECT_EQ(physical->writes[0].note, "second+0x4");
  EXPECT_EQ(to_string(physical->writes[0].function->at), "gpa:0x1000020");
  const auto kernel = build(before.file(), after.file(), Naming::kVirtual, "@kernel");
  ASSERT_TRUE(kernel.has_value());
  EXPECT_EQ(to_string(kernel->writes[0].at), "gva:0xffffffff81000024@kernel");
  const auto wrong = build(before.file(), after.file(), Naming::kVirtual, "@somewhere");
  ASSERT_FALSE(wrong.has_value());
  EXPECT_EQ(wrong.error().status, Status::kUsage);
}

TEST_F(BuildTest, RefusesWhatCannotBeAPatch) {
  EXPECT_EQ(refusal(), "what is loaded of the two files does not differ");
  after.data[8] = std::byte{1};
  EXPECT_EQ(refusal(), "the difference at 0xffffffff82000008 has no symbol of its own to be named by; give --at");
  EXPECT_EQ(refusal(Naming::kPhysical), "");
  after.data.resize(0x50);
  EXPECT_NE(refusal().find("segment 1 is at another address, of another size"), std::string::npos);
  after = {};
  before.text = Bytes(600 << 10, std::byte{0x90});
  after.text = Bytes(600 << 10, std::byte{0x91});
  EXPECT_NE(refusal(Naming::kPhysical).find("differ in more places than one patch may write"), std::string::npos);
  const Bytes file = after.file();
  EXPECT_EQ(build_manifest({"old", file}, {"new", file}, {"no name", "1", Naming::kSymbols, ""}).error().status,
            Status::kUsage);
}

TEST(ElfImage, NamesWhatIsWrongWithAFile) {
  const Bytes whole = Kernel().file();
  const auto reason = [](const Bytes& file) {
    const auto image = read_elf_image(file, "f");
    return image ? std::string() : image.error().reason;
  };
  const auto with = [&](size_t at, auto value) {
    Bytes file = whole;
    std::memcpy(file.data() + at, &value, sizeof value);
    return file;
  };
  constexpr size_t kFirst = sizeof(Elf64_Ehdr);
  EXPECT_EQ(reason(whole), "");
  EXPECT_EQ(reason({}), "not an ELF file");
  EXPECT_EQ(reason(with(EI_CLASS, uint8_t{3})), "malformed: unknown ELF class");
  EXPECT_EQ(reason(with(EI_DATA, uint8_t{2})), "not little endian, or of an unknown ELF version");
  EXPECT_EQ(reason(with(offsetof(Elf64_Ehdr, e_machine), uint16_t{183})), "wrong architecture: ELF machine 183");
  EXPECT_NE(reason(with(offsetof(Elf64_Ehdr, e_phnum), uint16_t{0})).find("program headers, must be"),
            std::string::npos);
  EXPECT_NE(reason(with(offsetof(Elf64_Ehdr, e_phoff), UINT64_MAX)).find("lies past the file's end"),
            std::string::npos);
  EXPECT_NE(reason(with(offsetof(Elf64_Ehdr, e_phentsize), uint16_t{1})).find("malformed"), std::string::npos);
  EXPECT_NE(reason(with(offsetof(Elf64_Ehdr, e_shoff), UINT64_MAX)).find("section header"), std::string::npos);
  EXPECT_NE(reason(with(kFirst + offsetof(Elf64_Phdr, p_offset), UINT64_MAX)).find("ends past the file's end"),
            std::string::npos);
  EXPECT_NE(reason(with(kFirst + offsetof(Elf64_Phdr, p_memsz), uint64_t{1})).find("larger in the file"),
            std::string::npos);
  EXPECT_NE(reason(with(kFirst + offsetof(Elf64_Phdr, p_vaddr), UINT64_MAX - 5)).find("overflow"),
            std::string::npos);
}

TEST(ElfImage, IsNoDangerWhateverItsBytesAre) {
  std::mt19937 random(20261123); // a seed of our own: the same bytes in every run
  const Bytes whole = Kernel().file();
  Kernel fixed;
  fixed.text[0x24] = std::byte{0xc3};
  const Bytes other = fixed.file();
  size_t built = 0;
  for (int round = 0; round < 20'000; ++round) {
    Bytes file = whole;
    for (unsigned changes = 1 + random() % 4; changes > 0; --changes) {
      // Mostly headers and symbols, which the reader goes by.
      const size_t headers = sizeof(Elf64_Ehdr) + 3 * sizeof(Elf64_Phdr);
      const size_t at =
          random() % 2 == 0 ? random() % headers : headers + 0x140 + random() % (file.size() - headers - 0x140);
      static constexpr uint64_t kValues[] = {0,          1,          0xff,           0x7fff'ffff,
                                             UINT32_MAX, UINT64_MAX, UINT64_MAX - 7, 1ULL << 63};
      const uint64_t value = random() % 2 == 0 ? random() : kValues[random() % std::size(kValues)];
      std::memcpy(file.data() + at, &value, std::min<size_t>(1U << random() % 4, file.size() - at));
    }
    if (random() % 8 == 0)
      file.resize(random() % file.size());
    if (const auto image = read_elf_image(file, "f"); !image) {
      ASSERT_EQ(image.error().status, Status::kFailed);
    }
    const auto manifest = build(file, other, random() % 2 == 0 ? Naming::kSymbols : Naming::kPhysical);
    if (!manifest)
      continue;
    ++built;
    ASSERT_TRUE(read_manifest("fuzz", write_manifest(*manifest)).has_value()) << write_manifest(*manifest);
  }
  EXPECT_GT(built, 0U);
}

} // namespace
} // namespace stopvisor::patch
