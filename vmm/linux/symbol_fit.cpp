// SPDX-License-Identifier: Apache-2.0
// Fits a file's symbols to a kernel's image. KASLR moves all of the kernel by one multiple of 2 MiB
// (CONFIG_PHYSICAL_ALIGN; Linux, arch/x86/boot/compressed/kaslr.c).
#include <algorithm>
#include <map>
#include <utility>

#include "vmm/linux/symbol_file.h"
#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kSlideUnit = 2ULL << 20;
// Slides at which the banner's place reads like one: a guest that maps it everywhere must not have us move, sort
// and compare all of the file's symbols for each.
constexpr int kMostSlides = 8;

std::string hex_text(std::span<const std::byte> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : bytes) {
    text += kDigits[static_cast<uint8_t>(byte) >> 4];
    text += kDigits[static_cast<uint8_t>(byte) & 15];
  }
  return text;
}

SymbolTable shifted(const SymbolTable& symbols, uint64_t slide) {
  SymbolTable result;
  for (size_t i = 0; i < symbols.size(); ++i) {
    const Symbol symbol = symbols[i];
    const uint64_t address = is_kernel_address(symbol.address) ? symbol.address + slide : symbol.address;
    (void)result.add(address, symbol.type, symbol.name); // was added once already
  }
  result.sort();
  return result;
}

// Functions of the same name lie at the same places, each name counted that both have once.
std::expected<void, std::string> compare(const SymbolTable& file, const SymbolTable& own) {
  const auto once = [](const SymbolTable& table) {
    std::map<std::string_view, std::pair<uint64_t, int>> names;
    for (size_t i = 0; i < table.size(); ++i)
      if (const Symbol symbol = table[i]; symbol.type == 'T')
        ++names.try_emplace(symbol.name, symbol.address, 0).first->second.second;
    return names;
  };
  const auto in_file = once(file);
  const auto in_guest = once(own);
  size_t both = 0;
  size_t elsewhere = 0;
  for (const auto& [name, place] : in_file) {
    const auto found = in_guest.find(name);
    if (found == in_guest.end() || place.second != 1 || found->second.second != 1)
      continue;
    ++both;
    elsewhere += found->second.first == place.first ? 0 : 1;
  }
  if (both == 0)
    return std::unexpected(std::string("the guest's own symbols have no function of the file's"));
  if (elsewhere != 0)
    return std::unexpected(std::to_string(elsewhere) + " of " + std::to_string(both) +
                           " functions lie elsewhere in the guest");
  return {};
}

} // namespace

std::expected<SymbolFit, std::string> fit_to_image(const SymbolFile& file, const KernelImage& image,
                                                   const SymbolTable* own) {
  const auto banner = file.symbols.address_of("linux_banner");
  if (!banner || *banner < kKernelImageStart || *banner >= kKernelImageEnd)
    return std::unexpected("the file has no symbol linux_banner in a kernel's image");
  const auto words = std::as_bytes(std::span(kBannerStart));
  std::string reason = "there is no slide at which the file's linux_banner reads \"Linux version ...\"";
  int slides = 0;
  for (uint64_t slide = 0; *banner + slide < kKernelImageEnd; slide += kSlideUnit) {
    const auto there = image.from(*banner + slide);
    if (there.size() < words.size() || !std::ranges::equal(there.first(words.size()), words))
      continue;
    if (++slides > kMostSlides)
      return std::unexpected("at more than " + std::to_string(kMostSlides) +
                             " slides the file's linux_banner reads \"Linux version ...\"");
    SymbolFit fit{slide, shifted(file.symbols, slide), {}};
    auto identity = identify(image, fit.symbols);
    if (!identity) {
      reason = std::move(identity.error());
      continue;
    }
    if (!file.build_id.empty() && identity->build_id != file.build_id) {
      reason = "its build ID is " + hex_text(file.build_id) + ", the guest's is " +
               (identity->build_id.empty() ? "not there" : hex_text(identity->build_id));
      continue;
    }
    if (own != nullptr)
      if (auto same = compare(fit.symbols, *own); !same) {
        reason = std::move(same.error());
        continue;
      }
    fit.identity = *std::move(identity);
    return fit;
  }
  return std::unexpected("the file is of another build: " + reason);
}

} // namespace stopvisor::vmm
