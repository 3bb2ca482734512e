// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/elf.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

constexpr uint32_t kXenNotePhys32Entry = 18; // XEN_ELFNOTE_PHYS32_ENTRY
constexpr size_t kMaxProgramHeaders = 256;   // a kernel has fewer than ten

// Copies a T out of the file; nothing where it does not lie inside.
template <typename T>
std::optional<T> copy_at(std::span<const std::byte> bytes, uint64_t offset) {
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T))
    return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

struct Header32 {
  using File = Elf32_Ehdr;
  using Program = Elf32_Phdr;
  static constexpr uint16_t kMachine = EM_386;
  static constexpr const char* kMachineName = "ELF32 for i386";
};

struct Header64 {
  using File = Elf64_Ehdr;
  using Program = Elf64_Phdr;
  static constexpr uint16_t kMachine = EM_X86_64;
  static constexpr const char* kMachineName = "ELF64 for x86-64";
};

// Both classes' program headers, widened.
struct ProgramHeader {
  uint32_t index;
  uint32_t type;
  uint64_t offset, gpa, file_bytes, memory_bytes, alignment;
};

class Reader {
public:
  Reader(std::span<const std::byte> file, std::string_view name) : file_(file), name_(name) {}

  std::expected<ElfKernel, Error> read();

private:
  using Headers = std::expected<std::vector<ProgramHeader>, Error>;

  [[nodiscard]] std::unexpected<Error> refuse(std::string reason) const {
    return std::unexpected(Error{"load kernel", name_, std::move(reason), Status::kFailed});
  }
  template <typename Class>
  Headers program_headers() const;
  std::expected<ElfSegment, Error> segment(const ProgramHeader& header) const;
  std::expected<std::vector<ElfSegment>, Error> segments(const std::vector<ProgramHeader>& headers) const;
  // The entry in the notes of one PT_NOTE; nothing where it has none.
  std::expected<std::optional<uint64_t>, Error> entry_in(const ProgramHeader& header) const;
  std::expected<std::optional<uint64_t>, Error> entry_of(std::span<const std::byte> descriptor) const;

  std::span<const std::byte> file_;
  std::string name_;
};

std::string segment_name(uint32_t index) {
  return "segment " + std::to_string(index);
}

template <typename Class>
Reader::Headers Reader::program_headers() const {
  const auto header = copy_at<typename Class::File>(file_, 0);
  if (!header)
    return refuse("truncated: the ELF header does not fit into the file");
  if (header->e_machine != Class::kMachine)
    return refuse("wrong architecture: ELF machine " + std::to_string(header->e_machine) + ", wanted " +
                  Class::kMachineName);
  if (header->e_type != ET_EXEC && header->e_type != ET_DYN)
    return refuse("not an executable: ELF type " + std::to_string(header->e_type));
  if (header->e_phnum == 0)
    return refuse("has no program headers");
  if (header->e_phnum > kMaxProgramHeaders)
    return refuse("has too many program headers: " + std::to_string(header->e_phnum));
  if (header->e_phentsize != sizeof(typename Class::Program))
    return refuse("malformed: program headers of " + std::to_string(header->e_phentsize) + " bytes");

  std::vector<ProgramHeader> headers;
  for (uint32_t index = 0; index < header->e_phnum; ++index) {
    const uint64_t step = index * sizeof(typename Class::Program);
    const auto program = header->e_phoff > file_.size()
                             ? std::nullopt
                             : copy_at<typename Class::Program>(file_, header->e_phoff + step);
    if (!program)
      return refuse("truncated: program header " + std::to_string(index) + " lies past the file's end");
    headers.push_back({index, program->p_type, program->p_offset, program->p_paddr, program->p_filesz,
                       program->p_memsz, program->p_align});
  }
  return headers;
}

std::expected<ElfSegment, Error> Reader::segment(const ProgramHeader& header) const {
  const std::string what = segment_name(header.index);
  if (header.file_bytes > header.memory_bytes)
    return refuse(what + " is larger in the file (" + to_hex(header.file_bytes) + ") than in memory (" +
                  to_hex(header.memory_bytes) + ")");
  if (header.memory_bytes > UINT64_MAX - header.gpa)
    return refuse(what + " overflows: " + to_hex(header.memory_bytes) + " bytes at gpa:" + to_hex(header.gpa));
  if (header.file_bytes != 0 && (header.offset > file_.size() || header.file_bytes > file_.size() - header.offset))
    return refuse("truncated: " + what + " ends past the file's end");
  return ElfSegment{header.index, header.offset, header.file_bytes, header.gpa, header.memory_bytes};
}

std::expected<std::vector<ElfSegment>, Error> Reader::segments(const std::vector<ProgramHeader>& headers) const {
  std::vector<ElfSegment> segments;
  for (const ProgramHeader& header : headers) {
    if (header.type != PT_LOAD)
      continue;
    auto checked = segment(header);
    if (!checked)
      return std::unexpected(std::move(checked.error()));
    if (checked->memory_bytes != 0)
      segments.push_back(*checked);
  }
  if (segments.empty())
    return refuse("has no segment to load");
  std::ranges::sort(segments, {}, &ElfSegment::gpa);
  for (size_t i = 1; i < segments.size(); ++i) {
    const ElfSegment& before = segments[i - 1];
    if (before.gpa + before.memory_bytes > segments[i].gpa)
      return refuse(segment_name(before.index) + " and " + segment_name(segments[i].index) +
                    " overlap at gpa:" + to_hex(segments[i].gpa));
  }
  return segments;
}

std::expected<std::optional<uint64_t>, Error> Reader::entry_of(std::span<const std::byte> descriptor) const {
  uint64_t entry = 0;
  if (descriptor.size() != sizeof(uint32_t) && descriptor.size() != sizeof(uint64_t))
    return refuse("malformed PVH note: an address of " + std::to_string(descriptor.size()) + " bytes");
  std::memcpy(&entry, descriptor.data(), descriptor.size()); // little endian on both sides
  if (entry > UINT32_MAX)
    return refuse("malformed PVH note: entry " + to_hex(entry) + " lies above 4 GiB");
  return entry;
}

std::expected<std::optional<uint64_t>, Error> Reader::entry_in(const ProgramHeader& header) const {
  if (header.offset > file_.size() || header.file_bytes > file_.size() - header.offset)
    return refuse("truncated: the notes end past the file's end");
  const auto notes = file_.subspan(header.offset, header.file_bytes);
  // ELF64's specification aligns notes to 8, but all but a few writers align to 4; p_align tells.
  const uint64_t alignment = header.alignment == 8 ? 8 : 4;
  auto aligned = [alignment](uint64_t value) { return (value + alignment - 1) & ~(alignment - 1); };

  uint64_t at = 0;
  while (const auto note = copy_at<Elf64_Nhdr>(notes, at)) { // Elf32_Nhdr is the same three words
    const uint64_t name_at = at + sizeof(Elf64_Nhdr);
    // 32-bit sizes: none of these sums can overflow.
    const uint64_t descriptor_at = aligned(name_at + note->n_namesz);
    if (descriptor_at + note->n_descsz > notes.size())
      return refuse("truncated: the note at " + to_hex(header.offset + at) + " ends past its segment");
    const bool is_xen = note->n_namesz == 4 && std::memcmp(notes.data() + name_at, "Xen", 4) == 0;
    if (is_xen && note->n_type == kXenNotePhys32Entry)
      return entry_of(notes.subspan(descriptor_at, note->n_descsz));
    at = aligned(descriptor_at + note->n_descsz);
  }
  return std::nullopt;
}

std::expected<ElfKernel, Error> Reader::read() {
  if (file_.size() < SELFMAG || std::memcmp(file_.data(), ELFMAG, SELFMAG) != 0)
    return refuse("not an ELF file");
  if (file_.size() < EI_NIDENT)
    return refuse("truncated: the ELF header does not fit into the file");
  const auto elf_class = std::to_integer<uint8_t>(file_[EI_CLASS]);
  if (elf_class != ELFCLASS32 && elf_class != ELFCLASS64)
    return refuse("malformed: ELF class " + std::to_string(elf_class));
  if (std::to_integer<uint8_t>(file_[EI_DATA]) != ELFDATA2LSB)
    return refuse("wrong architecture: not little endian");
  if (std::to_integer<uint8_t>(file_[EI_VERSION]) != EV_CURRENT)
    return refuse("malformed: unknown ELF version");

  auto headers = elf_class == ELFCLASS32 ? program_headers<Header32>() : program_headers<Header64>();
  if (!headers)
    return std::unexpected(std::move(headers.error()));
  auto loaded = segments(*headers);
  if (!loaded)
    return std::unexpected(std::move(loaded.error()));
  for (const ProgramHeader& header : *headers) {
    if (header.type != PT_NOTE)
      continue;
    const auto entry = entry_in(header);
    if (!entry)
      return std::unexpected(entry.error());
    const std::optional<uint64_t>& found = *entry;
    if (!found)
      continue;
    const uint64_t gpa = *found;
    const bool inside = std::ranges::any_of(*loaded, [gpa](const ElfSegment& segment) {
      return gpa >= segment.gpa && gpa - segment.gpa < segment.file_bytes;
    });
    if (!inside)
      return refuse("PVH entry gpa:" + to_hex(gpa) + " lies in no loaded segment");
    return ElfKernel{std::move(*loaded), gpa};
  }
  return refuse("has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY): not a PVH kernel");
}

} // namespace

std::expected<ElfKernel, Error> read_elf(std::span<const std::byte> file, std::string_view name) {
  return Reader(file, name).read();
}

} // namespace stopvisor::vmm
