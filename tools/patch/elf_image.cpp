// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/elf_image.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>

#include "vmm/linux/kernel_identity.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

constexpr size_t kMostSegments = 256;
constexpr size_t kMostSections = 65'536;
constexpr size_t kMostSymbols = size_t{1} << 22;
constexpr size_t kLongestName = 1024;

using Bytes = std::span<const std::byte>;

template <typename T>
std::optional<T> copy_at(Bytes bytes, uint64_t offset) {
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T))
    return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

std::optional<Bytes> part(Bytes bytes, uint64_t offset, uint64_t size) {
  if (offset > bytes.size() || bytes.size() - offset < size)
    return std::nullopt;
  return bytes.subspan(offset, size);
}

struct Class32 {
  using File = Elf32_Ehdr;
  using Program = Elf32_Phdr;
  using Section = Elf32_Shdr;
  using Symbol = Elf32_Sym;
  static constexpr uint16_t kMachine = EM_386;
};
struct Class64 {
  using File = Elf64_Ehdr;
  using Program = Elf64_Phdr;
  using Section = Elf64_Shdr;
  using Symbol = Elf64_Sym;
  static constexpr uint16_t kMachine = EM_X86_64;
};

template <typename Class>
class Reader {
public:
  Reader(Bytes file, std::string_view name) : file_(file), name_(name) {}

  std::expected<ElfImage, vmm::Error> read() {
    const auto header = copy_at<typename Class::File>(file_, 0);
    if (!header)
      return refuse("truncated: the ELF header does not fit into the file");
    if (header->e_machine != Class::kMachine)
      return refuse("wrong architecture: ELF machine " + std::to_string(header->e_machine));
    if (header->e_phnum == 0 || header->e_phnum > kMostSegments)
      return refuse("has " + std::to_string(header->e_phnum) + " program headers, must be 1 to " +
                    std::to_string(kMostSegments));
    if (header->e_phentsize != sizeof(typename Class::Program))
      return refuse("malformed: program headers of " + std::to_string(header->e_phentsize) + " bytes");
    image_.machine = header->e_machine;
    image_.type = header->e_type;
    image_.wide = sizeof(typename Class::File) == sizeof(Elf64_Ehdr);
    for (uint32_t index = 0; index < header->e_phnum; ++index)
      if (auto taken = take_segment(header->e_phoff, index); !taken)
        return std::unexpected(std::move(taken.error()));
    if (image_.segments.empty())
      return refuse("has no segment that is loaded");
    if (auto taken = take_symbols(*header); !taken)
      return std::unexpected(std::move(taken.error()));
    return std::move(image_);
  }

private:
  using Taken = std::expected<void, vmm::Error>;

  [[nodiscard]] std::unexpected<vmm::Error> refuse(std::string reason) const {
    return std::unexpected(vmm::Error{"patch build", name_, std::move(reason), vmm::Status::kFailed});
  }

  Taken take_segment(uint64_t table, uint32_t index) {
    const std::string what = "program header " + std::to_string(index);
    const uint64_t step = uint64_t{index} * sizeof(typename Class::Program);
    const auto program =
        table > file_.size() ? std::nullopt : copy_at<typename Class::Program>(file_, table + step);
    if (!program)
      return refuse("truncated: " + what + " lies past the file's end");
    if (program->p_type != PT_LOAD && program->p_type != PT_NOTE)
      return {};
    const auto bytes = part(file_, program->p_offset, program->p_filesz);
    if (!bytes)
      return refuse("truncated: what " + what + " is for ends past the file's end");
    const uint64_t address = program->p_vaddr;
    const uint64_t memory_bytes = program->p_memsz;
    if (program->p_type == PT_NOTE) {
      if (bytes->size() <= UINT64_MAX - address)
        image_.notes.emplace_back(address, address + bytes->size());
      if (const auto id = vmm::build_id_in(*bytes); !id.empty() && image_.build_id.empty())
        image_.build_id.assign(id.begin(), id.end());
      return {};
    }
    if (program->p_filesz > program->p_memsz)
      return refuse(what + ": larger in the file than in memory");
    if (memory_bytes > UINT64_MAX - address || memory_bytes > UINT64_MAX - program->p_paddr)
      return refuse(what + ": its addresses overflow");
    image_.segments.push_back({address, program->p_paddr, memory_bytes, program->p_flags, *bytes});
    return {};
  }

  Taken take_symbols(const typename Class::File& header) {
    if (header.e_shnum == 0 || header.e_shoff == 0)
      return {};
    if (header.e_shnum > kMostSections || header.e_shentsize != sizeof(typename Class::Section))
      return refuse("malformed section headers");
    for (uint32_t index = 0; index < header.e_shnum; ++index) {
      const auto section = section_at(header, index);
      if (!section)
        return refuse("truncated: section header " + std::to_string(index) + " lies past the file's end");
      if (section->sh_type != SHT_SYMTAB)
        continue;
      const auto names_section = section_at(header, section->sh_link);
      const auto symbols = part(file_, section->sh_offset, section->sh_size);
      const auto names = names_section && section->sh_link < header.e_shnum
                             ? part(file_, names_section->sh_offset, names_section->sh_size)
                             : std::nullopt;
      if (!symbols || !names)
        return refuse("truncated: its symbols end past the file's end");
      return take_symbols(*symbols, *names);
    }
    return {};
  }

  std::optional<typename Class::Section> section_at(const typename Class::File& header, uint32_t index) const {
    if (header.e_shoff > file_.size())
      return std::nullopt;
    return copy_at<typename Class::Section>(file_,
                                            header.e_shoff + uint64_t{index} * sizeof(typename Class::Section));
  }

  Taken take_symbols(Bytes symbols, Bytes names) {
    const size_t count = symbols.size() / sizeof(typename Class::Symbol);
    if (count > kMostSymbols)
      return refuse("has too many symbols: " + std::to_string(count));
    std::map<std::string, uint32_t, std::less<>> uses;
    for (size_t i = 0; i < count; ++i) {
      const auto copied = copy_at<typename Class::Symbol>(symbols, i * sizeof(typename Class::Symbol));
      if (!copied)
        break;
      const auto& symbol = *copied;
      const unsigned type = symbol.st_info & 0xf;
      if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx == SHN_ABS ||
          (type != STT_FUNC && type != STT_OBJECT && type != STT_NOTYPE) || symbol.st_name >= names.size())
        continue;
      const auto rest = names.subspan(symbol.st_name);
      const auto* const begin = reinterpret_cast<const char*>(rest.data());
      const size_t length = ::strnlen(begin, std::min(rest.size(), kLongestName));
      const std::string_view name(begin, length);
      const auto fits = [](char c) { return c > ' ' && c < 0x7f && c != '+' && c != '@'; };
      if (length == 0 || length == std::min(rest.size(), kLongestName) || !std::ranges::all_of(name, fits))
        continue;
      ++uses[std::string(name)];
      image_.symbols.push_back({symbol.st_value, symbol.st_size, std::string(name), type == STT_FUNC, false});
    }
    for (ElfFunction& one : image_.symbols)
      one.unique = uses[one.name] == 1;
    std::ranges::sort(image_.symbols, {}, [](const ElfFunction& one) { return std::tie(one.address, one.name); });
    return {};
  }

  Bytes file_;
  std::string name_;
  ElfImage image_;
};

} // namespace

const ElfFunction* ElfImage::symbol_at(uint64_t address) const {
  auto after = std::ranges::upper_bound(symbols, address, {}, &ElfFunction::address);
  // Of several at one address, and past those that end before, the nearest that says where it ends.
  for (int looked = 0; after != symbols.begin() && looked < 16; ++looked) {
    --after;
    if (after->unique && after->size != 0 && address - after->address < after->size)
      return &*after;
  }
  return nullptr;
}

std::expected<ElfImage, vmm::Error> read_elf_image(Bytes file, std::string_view name) {
  const auto refuse = [&](const char* reason) {
    return std::unexpected(vmm::Error{"patch build", std::string(name), reason, vmm::Status::kFailed});
  };
  if (file.size() < EI_NIDENT || std::memcmp(file.data(), ELFMAG, SELFMAG) != 0)
    return refuse("not an ELF file");
  if (std::to_integer<uint8_t>(file[EI_DATA]) != ELFDATA2LSB ||
      std::to_integer<uint8_t>(file[EI_VERSION]) != EV_CURRENT)
    return refuse("not little endian, or of an unknown ELF version");
  switch (std::to_integer<uint8_t>(file[EI_CLASS])) {
  case ELFCLASS32:
    return Reader<Class32>(file, name).read();
  case ELFCLASS64:
    return Reader<Class64>(file, name).read();
  default:
    return refuse("malformed: unknown ELF class");
  }
}

} // namespace stopvisor::patch
