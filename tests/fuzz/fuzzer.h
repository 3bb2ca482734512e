// SPDX-License-Identifier: Apache-2.0
// What a fuzzer of one parser gives; tests/fuzz/main.cpp is the rest (tests/fuzz/README.md).
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace stopvisor::fuzz {

using Bytes = std::vector<std::byte>;
using ByteSpan = std::span<const std::byte>;

// Inputs to begin with: made by the code that writes what the parser reads, so that they are never out of date.
[[nodiscard]] std::vector<Bytes> seeds();
// Gives any bytes at all to the parser, and looks at what it took for good.
void try_one(ByteSpan input);

// Ends the process, as a crash would, where something that was taken should not have been.
void must(bool good, const char* what);

[[nodiscard]] inline std::string_view text_of(ByteSpan bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
[[nodiscard]] inline Bytes bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

// The first byte chooses how the rest is meant.
struct Choice {
  unsigned first = 0;
  ByteSpan rest;
};
[[nodiscard]] inline Choice choice_of(ByteSpan input) noexcept {
  if (input.empty())
    return {};
  return {std::to_integer<unsigned>(input.front()), input.subspan(1)};
}
[[nodiscard]] inline Bytes chosen(unsigned first, ByteSpan rest) {
  Bytes input{static_cast<std::byte>(first)};
  input.insert(input.end(), rest.begin(), rest.end());
  return input;
}

} // namespace stopvisor::fuzz
