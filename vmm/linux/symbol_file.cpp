// SPDX-License-Identifier: Apache-2.0
// ELF: the System V ABI's chapters 4 and 5 (elf.h). System.map: Linux' scripts/mksysmap, the output of nm(1).
#include "vmm/linux/symbol_file.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <optional>

#include "vmm/linux/little_endian.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {
namespace {

using Buffer = std::vector<std::byte>;
template <typename T>
using Parsed = std::expected<T, std::string>;

constexpr uint64_t kMostFileBytes = 2ULL << 30;
constexpr uint64_t kMostTableBytes = 256ULL << 20; // of one section, or of a System.map
constexpr uint64_t kMostNotesBytes = 64ULL << 10;
constexpr uint32_t kMostSections = 65'536;

// Reads pieces of a file that may change under us: a piece is all there, or an error.
class File {
public:
  File(UniqueFd fd, uint64_t size) : fd_(std::move(fd)), size_(size) {}
  [[nodiscard]] uint64_t size() const noexcept { return size_; }
  [[nodiscard]] Parsed<Buffer> read(const char* what, uint64_t offset, uint64_t length, uint64_t most) const {
    const std::string name = what;
    if (length > most)
      return std::unexpected(name + " is larger than " + std::to_string(most >> 10) + " KiB");
    if (offset > size_ || length > size_ - offset)
      return std::unexpected(name + " lies outside the file");
    Buffer bytes(length);
    for (size_t done = 0; done < length;) {
      const ssize_t count =
          ::pread(fd_.get(), bytes.data() + done, length - done, static_cast<off_t>(offset + done));
      if (count < 0 && errno == EINTR)
        continue;
      if (count < 0)
        return std::unexpected(name + " cannot be read: " + system_error("", "", errno).reason);
      if (count == 0)
        return std::unexpected("the file shrank while it was read");
      done += static_cast<size_t>(count);
    }
    return bytes;
  }

private:
  UniqueFd fd_;
  uint64_t size_;
};

std::optional<std::string> parse_map_line(std::string_view line, SymbolTable& symbols) {
  constexpr size_t kDigits = 16;
  constexpr int kHexadecimal = 16;
  uint64_t address = 0;
  const std::string_view digits = line.substr(0, kDigits);
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), address, kHexadecimal);
  if (error != std::errc{} || end != digits.end() || line.size() < kDigits + 4 || line[kDigits] != ' ' ||
      line[kDigits + 2] != ' ')
    return "is not \"ADDRESS TYPE NAME\" with an address of 16 digits";
  if (!symbols.add(address, line[kDigits + 1], line.substr(kDigits + 3)))
    return "has a name that no symbol has, or is one symbol too many";
  return std::nullopt;
}

Parsed<SymbolTable> parse_map(std::string_view text) {
  SymbolTable symbols;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos)
      return std::unexpected("line " + std::to_string(number) + " has no end: the file is cut off");
    if (auto wrong = parse_map_line(text.substr(0, end), symbols))
      return std::unexpected("line " + std::to_string(number) + " " + *wrong);
    text.remove_prefix(end + 1);
  }
  return symbols;
}

class VmlinuxReader {
public:
  explicit VmlinuxReader(const File& file) : file_(file) {}
  [[nodiscard]] Parsed<SymbolFile> read() {
    if (auto wrong = read_sections())
      return std::unexpected(*std::move(wrong));
    SymbolFile result;
    const auto table = std::ranges::find(sections_, uint32_t{SHT_SYMTAB}, &Elf64_Shdr::sh_type);
    if (table == sections_.end())
      return std::unexpected("it has no symbol table: it is stripped");
    if (auto wrong = read_symbols(*table, result.symbols))
      return std::unexpected(*std::move(wrong));
    for (const Elf64_Shdr& section : sections_) {
      if (section.sh_type != SHT_NOTE || !result.build_id.empty())
        continue;
      const auto notes = file_.read("a section of notes", section.sh_offset, section.sh_size, kMostNotesBytes);
      if (!notes)
        return std::unexpected(notes.error());
      const auto id = build_id_in(*notes);
      result.build_id.assign(id.begin(), id.end());
    }
    return result;
  }

private:
  std::optional<std::string> read_sections() {
    const auto bytes = file_.read("the ELF header", 0, sizeof(Elf64_Ehdr), sizeof(Elf64_Ehdr));
    if (!bytes)
      return bytes.error();
    const auto header = take<Elf64_Ehdr>(*bytes, 0).value_or(Elf64_Ehdr{});
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
        header.e_machine != EM_X86_64)
      return "it is no ELF of 64 bits for x86-64";
    if (header.e_shentsize != sizeof(Elf64_Shdr) || header.e_shnum == 0 || header.e_shnum >= SHN_LORESERVE)
      return "it has no section headers";
    static_assert(SHN_LORESERVE < kMostSections);
    const uint64_t length = uint64_t{header.e_shnum} * sizeof(Elf64_Shdr);
    const auto headers = file_.read("the table of sections", header.e_shoff, length, length);
    if (!headers)
      return headers.error();
    sections_.resize(header.e_shnum);
    std::memcpy(sections_.data(), headers->data(), length);
    return std::nullopt;
  }

  std::optional<std::string> read_symbols(const Elf64_Shdr& section, SymbolTable& symbols) const {
    if (section.sh_entsize != sizeof(Elf64_Sym) || section.sh_link >= sections_.size())
      return "its symbol table is malformed";
    const auto table = file_.read("the symbol table", section.sh_offset, section.sh_size, kMostTableBytes);
    if (!table)
      return table.error();
    const Elf64_Shdr& names = sections_[section.sh_link];
    const auto strings = file_.read("the table of names", names.sh_offset, names.sh_size, kMostTableBytes);
    if (!strings)
      return strings.error();
    for (uint64_t at = 0; const auto symbol = take<Elf64_Sym>(*table, at); at += sizeof(Elf64_Sym))
      if (auto wrong = take_symbol(*symbol, *strings, symbols))
        return "symbol " + std::to_string(at / sizeof(Elf64_Sym)) + " " + *wrong;
    return std::nullopt;
  }

  // Functions, variables and labels; no sections, files or undefined ones, and nothing a linker numbers only.
  static std::optional<std::string> take_symbol(const Elf64_Sym& symbol, std::span<const std::byte> strings,
                                                SymbolTable& symbols) {
    const unsigned kind = ELF64_ST_TYPE(symbol.st_info);
    const bool wanted = kind == STT_FUNC || kind == STT_OBJECT || kind == STT_NOTYPE;
    if (!wanted || symbol.st_shndx == SHN_UNDEF || symbol.st_name == 0)
      return std::nullopt;
    const auto rest =
        slice(strings, symbol.st_name, strings.size() - std::min<uint64_t>(strings.size(), symbol.st_name));
    const auto* const text = reinterpret_cast<const char*>(rest.data());
    const size_t length = rest.empty() ? 0 : ::strnlen(text, rest.size());
    if (rest.empty() || length == rest.size())
      return "has a name outside the table of names";
    const bool global = ELF64_ST_BIND(symbol.st_info) != STB_LOCAL;
    const char type = kind == STT_FUNC ? 't' : 'd';
    if (length != 0 && !symbols.add(symbol.st_value, global ? static_cast<char>(type - 32) : type, {text, length}))
      return "has a name that no symbol has, or is one too many";
    return std::nullopt;
  }

  const File& file_;
  std::vector<Elf64_Shdr> sections_;
};

Parsed<SymbolFile> parse(const File& file) {
  const auto magic = file.read("the file's beginning", 0, SELFMAG, SELFMAG);
  if (magic && std::memcmp(magic->data(), ELFMAG, SELFMAG) == 0)
    return VmlinuxReader(file).read();
  const auto text = file.read("the file", 0, file.size(), kMostTableBytes);
  if (!text)
    return std::unexpected(text.error());
  auto symbols = parse_map({reinterpret_cast<const char*>(text->data()), text->size()});
  if (!symbols)
    return std::unexpected("it is no ELF, and as a System.map its " + symbols.error());
  return SymbolFile{{}, *std::move(symbols), {}};
}

} // namespace

std::expected<SymbolFile, Error> read_symbol_file(std::string_view operation, const std::string& path) {
  const std::string doing = std::string(operation) + ": --symbols";
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)); // a FIFO must not make us wait
  if (!fd)
    return std::unexpected(system_error(doing, path, errno));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0)
    return std::unexpected(system_error(doing, path, errno));
  if (!S_ISREG(status.st_mode))
    return std::unexpected(Error{doing, path, "is no regular file", Status::kUsage});
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > kMostFileBytes)
    return std::unexpected(Error{doing, path, "is larger than 2 GiB", Status::kUsage});
  auto result = parse(File(std::move(fd), size));
  if (result && result->symbols.size() == 0)
    result = std::unexpected(std::string("there are no symbols in it"));
  if (!result)
    return std::unexpected(Error{doing, path, std::move(result.error()), Status::kUsage});
  result->path = path;
  result->symbols.sort();
  return *std::move(result);
}

} // namespace stopvisor::vmm
