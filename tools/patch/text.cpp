// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/text.h"

#include <algorithm>

#include "vmm/control/fields.h"

namespace stopvisor::patch {
namespace {

constexpr size_t kShownBytes = 16;

std::string spaced(std::span<const std::byte> bytes, std::span<const std::byte> mask = {}) {
  std::string text;
  for (size_t i = 0; i < bytes.size() && i < kShownBytes; ++i) {
    const bool counts = mask.empty() || mask[i] != std::byte{0};
    text += (text.empty() ? "" : " ") + (counts ? vmm::hex_of(bytes.subspan(i, 1)) : std::string("??"));
  }
  return text + (bytes.size() > kShownBytes ? " ..." : "");
}

// Where to begin: the line of kShownBytes that has the first difference.
size_t line_of_difference(std::span<const std::byte> one, std::span<const std::byte> mask,
                          std::span<const std::byte> other) {
  for (size_t i = 0; i < one.size(); ++i)
    if (((one[i] ^ other[i]) & (mask.empty() ? std::byte{0xff} : mask[i])) != std::byte{0})
      return i / kShownBytes * kShownBytes;
  return 0;
}

std::string at_text(size_t from) {
  return from == 0 ? "" : "at +" + std::to_string(from) + " ";
}

} // namespace

std::string difference(std::span<const std::byte> expected, std::span<const std::byte> mask,
                       std::span<const std::byte> found) {
  const size_t from = line_of_difference(expected, mask, found);
  return at_text(from) + "expected " + spaced(expected.subspan(from), mask.empty() ? mask : mask.subspan(from)) +
         ", found " + spaced(found.subspan(from));
}

std::string three_ways(std::span<const std::byte> before, std::span<const std::byte> written,
                       std::span<const std::byte> found) {
  const size_t from = line_of_difference(written, {}, found);
  return at_text(from) + "originally " + spaced(before.subspan(from)) + ", written " +
         spaced(written.subspan(from)) + ", found " + spaced(found.subspan(from));
}

} // namespace stopvisor::patch
