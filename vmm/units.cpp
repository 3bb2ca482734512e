// SPDX-License-Identifier: Apache-2.0
#include "vmm/units.h"

#include <array>
#include <charconv>
#include <limits>
#include <utility>

namespace stopvisor::vmm {
namespace {

struct Unit {
  std::string_view name;
  uint64_t factor;
};

constexpr std::array<Unit, 7> kSizeUnits{{{"", 1},
                                          {"K", 1u << 10},
                                          {"k", 1u << 10},
                                          {"M", 1u << 20},
                                          {"m", 1u << 20},
                                          {"G", 1u << 30},
                                          {"g", 1u << 30}}};
constexpr std::array<Unit, 3> kDurationUnits{{{"us", 1'000}, {"ms", 1'000'000}, {"s", 1'000'000'000}}};

// What the two kinds of quantity are called in errors.
struct Kind {
  const char* noun;
  const char* units;
  uint64_t limit;
};

template <size_t N>
std::expected<uint64_t, Error> parse_quantity(std::string_view operation, std::string_view text, const Kind& kind,
                                              const std::array<Unit, N>& units) {
  auto usage = [&](std::string reason) {
    return std::unexpected(Error{std::string(operation), std::string(text), std::move(reason), Status::kUsage});
  };
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc::invalid_argument)
    return usage(std::string("not a ") + kind.noun + ": expected a number and " + kind.units);
  const std::string too_large = std::string(kind.noun) + " is too large";
  if (error != std::errc{})
    return usage(too_large);

  const std::string_view suffix = text.substr(static_cast<size_t>(end - text.data()));
  for (const Unit& unit : units) {
    if (suffix != unit.name)
      continue;
    if (number > kind.limit / unit.factor)
      return usage(too_large);
    return number * unit.factor;
  }
  if (suffix.empty())
    return usage(std::string(kind.noun) + " lacks a unit: expected " + kind.units);
  return usage(std::string("unknown unit '") + std::string(suffix) + "': expected " + kind.units);
}

} // namespace

std::expected<uint64_t, Error> parse_size(std::string_view operation, std::string_view text) {
  return parse_quantity(operation, text, {"size", "K, M, G or nothing", std::numeric_limits<uint64_t>::max()},
                        kSizeUnits);
}

std::expected<std::chrono::nanoseconds, Error> parse_duration(std::string_view operation, std::string_view text) {
  const Kind kind{"duration", "us, ms or s", std::numeric_limits<int64_t>::max()};
  const auto nanoseconds = parse_quantity(operation, text, kind, kDurationUnits);
  if (!nanoseconds)
    return std::unexpected(nanoseconds.error());
  return std::chrono::nanoseconds(static_cast<int64_t>(*nanoseconds));
}

std::optional<uint64_t> parse_hex(std::string_view text) {
  if (!text.starts_with("0x") || text.size() < 3 || text.size() > 18)
    return std::nullopt;
  text.remove_prefix(2);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc{} || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

std::string to_hex(uint64_t value) {
  std::array<char, 18> buffer{'0', 'x'};
  const auto result = std::to_chars(buffer.data() + 2, buffer.data() + buffer.size(), value, 16);
  return std::string(buffer.data(), result.ptr);
}

} // namespace stopvisor::vmm
