// SPDX-License-Identifier: Apache-2.0
// Facts from Linux 6.1's and 6.4's scripts/kallsyms.c (write_src(), optimize_token_table()) and kernel/kallsyms.c
// (kallsyms_sym_address(), get_symbol_offset()). Every table begins at a multiple of 8.
#include "vmm/linux/kallsyms.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "vmm/linux/little_endian.h"
#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

using Bytes = std::span<const std::byte>;

constexpr size_t kTokens = 256;
constexpr size_t kIndexBytes = kTokens * sizeof(uint16_t);
constexpr size_t kLongestToken = 512;
constexpr size_t kNamesPerMarker = 256;
constexpr uint64_t kFewestSymbols = 64;          // a kernel has tens of thousands
constexpr uint64_t kFarthestNames = 48ULL << 20; // from the names' beginning to the tokens
// All names that are looked at together, right or wrong: what bounds the time. A search takes one or two tables.
constexpr uint64_t kMostNamesLookedAt = 32ULL << 20;
constexpr int kMostTables = 32;   // that look like tokens
constexpr int kMostDigits = 4096; // places that hold the digits; kernels have one

constexpr uint64_t aligned(uint64_t offset) {
  return (offset + 7) & ~uint64_t{7};
}

// The tokens, and where they lie in their part of the image.
struct Tokens {
  std::array<std::string_view, kTokens> text;
  uint64_t begin = 0;
  uint64_t index_end = 0;
};

// What a search may still spend, and why it has found nothing so far.
struct Search {
  uint64_t names_left = kMostNamesLookedAt;
  std::string reason = "no table of symbol-name tokens";
};

// Every character that occurs in a symbol's name is a token of its own, at its own number: all digits do.
Bytes digits_pattern() {
  static constexpr char kDigits[] = "0\0001\0002\0003\0004\0005\0006\0007\0008\0009"; // the last NUL is implied
  return std::as_bytes(std::span(kDigits));
}

// Up to the next NUL; nothing where that is too far. `at` moves behind it.
std::optional<std::string_view> take_token(Bytes part, uint64_t& at) {
  const Bytes rest = part.subspan(std::min<uint64_t>(at, part.size()));
  const auto* const begin = reinterpret_cast<const char*>(rest.data());
  const size_t most = std::min(rest.size(), kLongestToken);
  const size_t length = most == 0 ? 0 : ::strnlen(begin, most);
  if (length == most)
    return std::nullopt;
  at += length + 1;
  return std::string_view(begin, length);
}

// The tokens whose digits begin at `digits`: those behind them lead to the index, which leads to the first one.
std::optional<Tokens> tokens_around(Bytes part, uint64_t digits) {
  Tokens tokens;
  uint64_t at = digits;
  for (size_t i = '0'; i < kTokens; ++i)
    if (!take_token(part, at))
      return std::nullopt;
  const Bytes index = slice(part, aligned(at), kIndexBytes);
  const auto begin_of = [&](size_t i) -> uint64_t { return *take<uint16_t>(index, i * sizeof(uint16_t)); };
  if (index.empty() || begin_of('0') > digits)
    return std::nullopt;
  tokens.begin = digits - begin_of('0');
  tokens.index_end = aligned(at) + kIndexBytes;
  at = tokens.begin;
  for (size_t i = 0; i < kTokens; ++i) {
    if (at != tokens.begin + begin_of(i))
      return std::nullopt;
    const auto token = take_token(part, at);
    if (!token)
      return std::nullopt;
    tokens.text[i] = *token;
  }
  if (tokens.begin % 8 != 0)
    return std::nullopt;
  return tokens;
}

// The bytes of one name, each the number of a token; `at` moves behind them. A length has one byte, or two where
// the first has its top bit set (Linux 6.1 on).
Bytes take_name(Bytes part, uint64_t& at) {
  const auto low = take<uint8_t>(part, at);
  if (!low)
    return {};
  uint64_t length = *low;
  ++at;
  if ((*low & 0x80) != 0) {
    const auto high = take<uint8_t>(part, at);
    if (!high)
      return {};
    length = (*low & 0x7fU) | uint64_t{*high} << 7;
    ++at;
  }
  const Bytes name = length > SymbolTable::kLongestName ? Bytes() : slice(part, at, length);
  at += name.size();
  return name;
}

struct Names {
  uint64_t count = 0;
  std::vector<Bytes> names;
};

// Names that begin behind a count at `at`, if the markers behind them say the same. Between markers and tokens
// there is nothing, or three bytes a symbol (6.2 and 6.3: their order by name).
std::optional<Names> names_at(Bytes part, uint64_t at, uint64_t count, const Tokens& tokens, Search& search) {
  const Bytes before_tokens = part.first(tokens.begin);
  const uint64_t begin = at + sizeof(uint64_t);
  std::vector<uint32_t> markers;
  Names found{count, {}};
  uint64_t end = begin;
  for (uint64_t i = 0; i < count; ++i) {
    if (search.names_left == 0)
      return std::nullopt;
    --search.names_left;
    if (i % kNamesPerMarker == 0)
      markers.push_back(static_cast<uint32_t>(end - begin));
    const Bytes name = take_name(before_tokens, end);
    if (name.empty())
      return std::nullopt;
    found.names.push_back(name);
  }
  const Bytes said = slice(before_tokens, aligned(end), markers.size() * sizeof(uint32_t));
  if (said.empty() || std::memcmp(said.data(), markers.data(), said.size()) != 0)
    return std::nullopt;
  const uint64_t gap = tokens.begin - std::min(tokens.begin, aligned(aligned(end) + said.size()));
  if (gap != 0 && gap != aligned(3 * count))
    return std::nullopt;
  return found;
}

// Addresses are offsets from a base. Where per-CPU variables are numbered from 0 (CONFIG_KALLSYMS_ABSOLUTE_PERCPU)
// their offsets are positive and stand for themselves, and those of all others are negative, counted from -1.
uint64_t address_of(int32_t offset, uint64_t base, bool absolute_percpu) {
  if (!absolute_percpu)
    return base + static_cast<uint32_t>(offset);
  if (offset >= 0)
    return static_cast<uint32_t>(offset);
  return base + static_cast<uint64_t>(-(int64_t{offset} + 1));
}

std::optional<SymbolTable> decode(const Names& names, const Tokens& tokens, Bytes offsets, uint64_t base) {
  const auto offset_of = [&](uint64_t i) { return *take<int32_t>(offsets, i * sizeof(int32_t)); };
  bool absolute_percpu = false;
  for (uint64_t i = 0; i < names.count && !absolute_percpu; ++i)
    absolute_percpu = offset_of(i) < 0;
  SymbolTable table;
  std::string text;
  uint64_t in_image = 0;
  for (uint64_t i = 0; i < names.count; ++i) {
    text.clear();
    for (const std::byte token : names.names[i])
      if (text.size() <= SymbolTable::kLongestName) // so that long tokens do not add up
        text += tokens.text[static_cast<uint8_t>(token)];
    const uint64_t address = address_of(offset_of(i), base, absolute_percpu);
    if (text.empty() || !table.add(address, text[0], std::string_view(text).substr(1)))
      return std::nullopt;
    if (is_kernel_address(address)) {
      if (address >= kKernelImageEnd)
        return std::nullopt;
      ++in_image;
    }
  }
  if (in_image < names.count / 2)
    return std::nullopt;
  table.sort();
  return table;
}

// Offsets and then their base, at `at`.
std::optional<SymbolTable> decode_at(const KernelImage& image, Bytes part, uint64_t at, const Names& names,
                                     const Tokens& tokens) {
  const Bytes offsets = slice(part, at, names.count * sizeof(int32_t));
  const auto base = take<uint64_t>(part, at + aligned(names.count * sizeof(int32_t)));
  if (offsets.empty() || !base || *base < kKernelImageStart || *base >= kKernelImageEnd ||
      image.from(*base).empty())
    return std::nullopt;
  return decode(names, tokens, offsets, *base);
}

std::optional<SymbolTable> table_of(const KernelImage& image, const KernelImage::Part& part, const Tokens& tokens,
                                    Search& search) {
  const Bytes bytes = part.bytes;
  const uint64_t nearest = tokens.begin - std::min(tokens.begin, kFarthestNames);
  for (uint64_t at = tokens.begin; at >= nearest + 8 && search.names_left != 0;) {
    at -= 8;
    const uint64_t count = take<uint64_t>(bytes, at).value_or(0); // 32 bits and the padding behind them
    if (count < kFewestSymbols || count > SymbolTable::kMostSymbols || 2 * count > tokens.begin - at - 8)
      continue;
    const auto names = names_at(bytes, at, count, tokens, search);
    if (!names)
      continue;
    const uint64_t before = aligned(count * sizeof(int32_t)) + sizeof(uint64_t);
    if (before <= at)
      if (auto table = decode_at(image, bytes, at - before, *names, tokens))
        return table;
    if (auto table = decode_at(image, bytes, tokens.index_end, *names, tokens))
      return table;
    search.reason = "symbol names at gva:" + to_hex(part.gva + at + 8) + ", but no addresses that fit them";
  }
  if (search.names_left == 0)
    search.reason = "too many places look like symbol names";
  return std::nullopt;
}

} // namespace

std::expected<SymbolTable, std::string>
find_kallsyms(const KernelImage& image,
              stopper::FunctionRef<std::expected<void, std::string>(const SymbolTable&)> accept) {
  const Bytes pattern = digits_pattern();
  Search search;
  int tables = 0;
  int places = 0;
  for (const KernelImage::Part& part : image.parts()) {
    for (uint64_t at = 0; at < part.bytes.size();) {
      const void* const hit =
          ::memmem(part.bytes.data() + at, part.bytes.size() - at, pattern.data(), pattern.size());
      if (hit == nullptr)
        break;
      const auto digits = static_cast<uint64_t>(static_cast<const std::byte*>(hit) - part.bytes.data());
      at = digits + 1;
      if (++places > kMostDigits)
        return std::unexpected("more than " + std::to_string(kMostDigits) + " places look like symbol-name tokens");
      const auto tokens = tokens_around(part.bytes, digits);
      if (!tokens)
        continue;
      if (++tables > kMostTables)
        return std::unexpected("more than " + std::to_string(kMostTables) + " places look like symbol-name tokens");
      search.reason = "tokens at gva:" + to_hex(part.gva + tokens->begin) + ", but no symbol names that fit them";
      auto table = table_of(image, part, *tokens, search);
      if (!table)
        continue;
      auto accepted = accept(*table);
      if (accepted)
        return *std::move(table);
      search.reason = std::move(accepted.error());
    }
  }
  return std::unexpected(search.reason);
}

} // namespace stopvisor::vmm
