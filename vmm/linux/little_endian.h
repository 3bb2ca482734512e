// SPDX-License-Identifier: Apache-2.0
// Takes numbers out of bytes that somebody else wrote, never beyond their end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

namespace stopvisor::vmm {

// The number at `offset`; nothing where not all of it is there. The host is little-endian, as all of x86 is.
template <typename T>
  requires std::is_trivially_copyable_v<T>
[[nodiscard]] std::optional<T> take(std::span<const std::byte> bytes, uint64_t offset) noexcept {
  if (offset > bytes.size() || sizeof(T) > bytes.size() - offset)
    return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

// [offset, offset + length); empty where not all of it is there.
[[nodiscard]] inline std::span<const std::byte> slice(std::span<const std::byte> bytes, uint64_t offset,
                                                      uint64_t length) noexcept {
  if (offset > bytes.size() || length > bytes.size() - offset)
    return {};
  return bytes.subspan(offset, length);
}

} // namespace stopvisor::vmm
