// SPDX-License-Identifier: Apache-2.0
// What a manifest's parts mean; reading and writing them is in files of their own.
#include "tools/patch/manifest.h"

#include <algorithm>
#include <cstring>

namespace stopvisor::patch {
namespace {

uint64_t word_of(std::span<const std::byte> bytes) noexcept {
  uint64_t word = 0;
  std::memcpy(&word, bytes.data(), std::min(bytes.size(), sizeof word)); // little endian on both sides
  return word;
}

} // namespace

bool Predicate::holds_for(uint64_t word) const noexcept {
  switch (comparison) {
  case Comparison::kEqual:
    return word == value;
  case Comparison::kNotEqual:
    return word != value;
  case Comparison::kLess:
    return word < value;
  case Comparison::kLessOrEqual:
    return word <= value;
  case Comparison::kGreater:
    return word > value;
  case Comparison::kGreaterOrEqual:
    return word >= value;
  case Comparison::kMask:
    return (word & mask) == value;
  }
  return false;
}

void transform(const Operation& operation, std::span<const std::byte> before, std::span<std::byte> after) noexcept {
  uint64_t word = word_of(before);
  switch (operation.code) {
  case Operation::Code::kBytes:
    std::memcpy(after.data(), operation.bytes.data(), after.size());
    return;
  case Operation::Code::kSet:
  case Operation::Code::kCas: // what was compared is what the write expects
    word = operation.value;
    break;
  case Operation::Code::kAdd:
    word += operation.value;
    break;
  case Operation::Code::kAnd:
    word &= operation.value;
    break;
  case Operation::Code::kOr:
    word |= operation.value;
    break;
  }
  std::memcpy(after.data(), &word, after.size());
}

bool is_expected(const Write& write, std::span<const std::byte> found) noexcept {
  if (write.mask.empty())
    return std::ranges::equal(write.expect, found);
  for (size_t i = 0; i < found.size(); ++i)
    if (((write.expect[i] ^ found[i]) & write.mask[i]) != std::byte{0})
      return false;
  return true;
}

const char* name_of(SiteKind kind) noexcept {
  return kind == SiteKind::kCode ? "code" : "data";
}

const char* name_of(Comparison comparison) noexcept {
  switch (comparison) {
  case Comparison::kEqual:
    return "eq";
  case Comparison::kNotEqual:
    return "ne";
  case Comparison::kLess:
    return "lt";
  case Comparison::kLessOrEqual:
    return "le";
  case Comparison::kGreater:
    return "gt";
  case Comparison::kGreaterOrEqual:
    return "ge";
  case Comparison::kMask:
    return "mask";
  }
  return "?";
}

const char* name_of(Operation::Code code) noexcept {
  switch (code) {
  case Operation::Code::kBytes:
    return "bytes";
  case Operation::Code::kSet:
    return "set";
  case Operation::Code::kAdd:
    return "add";
  case Operation::Code::kAnd:
    return "and";
  case Operation::Code::kOr:
    return "or";
  case Operation::Code::kCas:
    return "cas";
  }
  return "?";
}

bool is_patch_name(std::string_view name) noexcept {
  const auto alphanumeric = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  };
  return !name.empty() && name.size() <= 64 && alphanumeric(name.front()) &&
         std::ranges::all_of(name, [&](char c) { return alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
}

} // namespace stopvisor::patch
