// SPDX-License-Identifier: Apache-2.0
// Builds small PVH ELF files for the tests: right ones, and ones wrong in exactly one place.
#pragma once

#include <elf.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace stopvisor::vmm::testing {

struct Elf64Classes {
  using Header = Elf64_Ehdr;
  using Program = Elf64_Phdr;
  static constexpr unsigned char kClass = ELFCLASS64;
  static constexpr uint16_t kMachine = EM_X86_64;
};
struct Elf32Classes {
  using Header = Elf32_Ehdr;
  using Program = Elf32_Phdr;
  static constexpr unsigned char kClass = ELFCLASS32;
  static constexpr uint16_t kMachine = EM_386;
};

// A PVH note: header, "Xen", padding to `alignment`, then `entry` in `entry_bytes` bytes.
inline std::vector<std::byte> pvh_note(uint64_t entry, uint32_t entry_bytes = 4, size_t alignment = 4) {
  const Elf64_Nhdr header{4, entry_bytes, 18};
  std::vector<std::byte> note(sizeof(header) + 4);
  std::memcpy(note.data(), &header, sizeof(header));
  std::memcpy(note.data() + sizeof(header), "Xen", 4);
  note.resize((note.size() + alignment - 1) / alignment * alignment);
  const size_t at = note.size();
  note.resize(at + (entry_bytes + alignment - 1) / alignment * alignment);
  std::memcpy(note.data() + at, &entry, entry_bytes < 8 ? entry_bytes : 8);
  return note;
}

// The ELF header, then every program header, then the contents in order.
template <typename Classes = Elf64Classes>
class ElfBuilder {
public:
  using Header = typename Classes::Header;
  using Program = typename Classes::Program;

  ElfBuilder() {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = Classes::kClass;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_ident[EI_VERSION] = EV_CURRENT;
    header.e_type = ET_EXEC;
    header.e_machine = Classes::kMachine;
    header.e_version = EV_CURRENT;
    header.e_phoff = sizeof(Header);
    header.e_phentsize = sizeof(Program);
  }

  ElfBuilder& load(uint64_t gpa, std::vector<std::byte> bytes, uint64_t memory_bytes) {
    return add(PT_LOAD, gpa, std::move(bytes), memory_bytes, 0x1000);
  }
  ElfBuilder& note(std::vector<std::byte> bytes, uint64_t alignment = 4) {
    const uint64_t size = bytes.size();
    return add(PT_NOTE, 0, std::move(bytes), size, alignment);
  }

  // `change` sees header and program headers last.
  template <typename Change>
  [[nodiscard]] std::vector<std::byte> build(const Change& change) {
    header.e_phnum = static_cast<uint16_t>(programs.size());
    uint64_t offset = sizeof(Header) + programs.size() * sizeof(Program);
    for (size_t i = 0; i < programs.size(); ++i) {
      programs[i].p_offset = static_cast<decltype(programs[i].p_offset)>(offset);
      offset += contents[i].size();
    }
    change(*this);
    std::vector<std::byte> file;
    append(file, std::as_bytes(std::span(&header, 1)));
    append(file, std::as_bytes(std::span(programs)));
    for (const auto& content : contents)
      append(file, content);
    return file;
  }
  [[nodiscard]] std::vector<std::byte> build() {
    return build([](auto&) {});
  }

  Header header{};
  std::vector<Program> programs;
  std::vector<std::vector<std::byte>> contents;

private:
  static void append(std::vector<std::byte>& to, std::span<const std::byte> from) {
    to.insert(to.end(), from.begin(), from.end());
  }
  ElfBuilder& add(uint32_t type, uint64_t gpa, std::vector<std::byte> bytes, uint64_t memory_bytes,
                  uint64_t alignment) {
    Program program{};
    program.p_type = type;
    program.p_paddr = static_cast<decltype(program.p_paddr)>(gpa);
    program.p_filesz = static_cast<decltype(program.p_filesz)>(bytes.size());
    program.p_memsz = static_cast<decltype(program.p_memsz)>(memory_bytes);
    program.p_align = static_cast<decltype(program.p_align)>(alignment);
    programs.push_back(program);
    contents.push_back(std::move(bytes));
    return *this;
  }
};

// One segment of `bytes` at 1 MiB, entered at its first byte.
template <typename Classes = Elf64Classes>
ElfBuilder<Classes> small_kernel(size_t bytes = 64, uint64_t gpa = 0x10'0000) {
  ElfBuilder<Classes> builder;
  builder.load(gpa, std::vector<std::byte>(bytes, std::byte{0x90}), bytes);
  builder.note(pvh_note(gpa));
  return builder;
}

} // namespace stopvisor::vmm::testing
