// SPDX-License-Identifier: Apache-2.0
#include "vmm/linux/kernel_identity.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "vmm/linux/little_endian.h"
#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

using Bytes = std::span<const std::byte>;

constexpr size_t kLongestBanner = 512;
constexpr uint64_t kMostNotes = 64 << 10;
constexpr size_t kLongestBuildId = 64; // SHA-1 has 20 bytes

constexpr uint64_t padded(uint64_t length) {
  return (length + 3) & ~uint64_t{3};
}

std::vector<std::byte> copy(Bytes bytes) {
  return {bytes.begin(), bytes.end()};
}

// Up to and without the newline.
Bytes banner_line(Bytes bytes) {
  bytes = bytes.first(std::min(bytes.size(), kLongestBanner));
  const auto end = std::ranges::find(bytes, std::byte{'\n'});
  return end == bytes.end() ? Bytes() : bytes.first(static_cast<size_t>(end - bytes.begin()));
}

} // namespace

Bytes build_id_in(Bytes notes) {
  static constexpr std::string_view kName("GNU\0", 4);
  for (uint64_t at = 0;;) {
    const auto header = take<Elf64_Nhdr>(notes, at);
    if (!header)
      return {};
    const uint64_t name_at = at + sizeof(Elf64_Nhdr);
    const uint64_t text_at = name_at + padded(header->n_namesz);
    const Bytes name = slice(notes, name_at, header->n_namesz);
    const Bytes text = slice(notes, text_at, header->n_descsz);
    if (header->n_type == NT_GNU_BUILD_ID && text.size() <= kLongestBuildId &&
        std::ranges::equal(name, std::as_bytes(std::span(kName))))
      return text;
    at = text_at + padded(header->n_descsz);
  }
}

std::expected<KernelIdentity, std::string> identify(const KernelImage& image, const SymbolTable& symbols) {
  const auto banner_at = symbols.address_of("linux_banner");
  if (!banner_at)
    return std::unexpected("the symbols have no linux_banner");
  const Bytes line = banner_line(image.from(*banner_at));
  KernelIdentity identity;
  std::ranges::transform(line, std::back_inserter(identity.banner),
                         [](std::byte byte) { return printable(static_cast<char>(byte)); });
  if (!identity.banner.starts_with(kBannerStart))
    return std::unexpected("linux_banner at gva:" + to_hex(*banner_at) + " does not read \"Linux version ...\"");
  const std::string_view rest = std::string_view(identity.banner).substr(kBannerStart.size());
  identity.release = rest.substr(0, rest.find(' '));
  identity.proofs.push_back({*banner_at, copy(line)});
  const auto start = symbols.address_of("__start_notes");
  const auto stop = symbols.address_of("__stop_notes");
  if (!start || !stop || *stop - *start > kMostNotes)
    return identity;
  const Bytes notes = image.range(*start, *stop);
  identity.build_id = copy(build_id_in(notes));
  if (!notes.empty())
    identity.proofs.push_back({*start, copy(notes)});
  return identity;
}

bool KernelIdentity::holds_in(const KernelMemory& memory) const {
  return std::ranges::all_of(proofs, [&](const Proof& proof) {
    std::vector<std::byte> now(proof.bytes.size());
    return memory.read(proof.gva, now) && now == proof.bytes;
  });
}

} // namespace stopvisor::vmm
