// SPDX-License-Identifier: Apache-2.0
#include "vmm/mac_address.h"

#include <algorithm>
#include <charconv>
#include <cstddef>

namespace stopvisor::vmm {
namespace {

constexpr uint8_t kGroupBit = 0x01;
constexpr uint8_t kLocalBit = 0x02;
constexpr size_t kTextBytes = 17; // "xx:" five times and "xx"
constexpr size_t kStride = 3;     // characters from one byte to the next

// FNV-1a, 64 bits: any even spread of names will do, as long as it never changes.
constexpr uint64_t kHashStart = 0xcbf2'9ce4'8422'2325;
constexpr uint64_t kHashFactor = 0x0000'0100'0000'01b3;

uint64_t mix(uint64_t hash, uint8_t byte) noexcept {
  return (hash ^ byte) * kHashFactor;
}

} // namespace

bool MacAddress::is_station() const noexcept {
  return (bytes[0] & kGroupBit) == 0 && std::ranges::any_of(bytes, [](uint8_t byte) { return byte != 0; });
}

std::string MacAddress::text() const {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : bytes) {
    if (!text.empty())
      text += ':';
    text += kDigits[byte >> 4];
    text += kDigits[byte & 0xf];
  }
  return text;
}

std::optional<MacAddress> parse_mac(std::string_view text) {
  if (text.size() != kTextBytes)
    return std::nullopt;
  MacAddress address;
  for (size_t index = 0; index < address.bytes.size(); ++index) {
    const char* at = text.data() + index * kStride;
    const auto [end, error] = std::from_chars(at, at + 2, address.bytes[index], 16);
    if (error != std::errc{} || end != at + 2)
      return std::nullopt;
    if (index + 1 < address.bytes.size() && *end != ':')
      return std::nullopt;
  }
  return address;
}

MacAddress default_mac(std::string_view vm_name, uint32_t index) {
  uint64_t hash = kHashStart;
  for (const char letter : vm_name)
    hash = mix(hash, uint8_t(letter));
  hash = mix(hash, 0); // no name has a NUL: "a" and 1 is not "a\1" and 0
  for (uint32_t shift = 0; shift < 32; shift += 8)
    hash = mix(hash, uint8_t(index >> shift));
  MacAddress address;
  for (uint8_t& byte : address.bytes) {
    byte = uint8_t(hash >> 16); // the low bits of this hash are its weakest
    hash >>= 8;
  }
  address.bytes[0] = uint8_t((address.bytes[0] & ~kGroupBit) | kLocalBit);
  return address;
}

} // namespace stopvisor::vmm
