// SPDX-License-Identifier: Apache-2.0
#include "vmm/units.h"

#include <algorithm>
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

constexpr std::array<Unit, 9> kSizeUnits{{{"", 1},
                                          {"K", 1u << 10},
                                          {"k", 1u << 10},
                                          {"M", 1u << 20},
                                          {"m", 1u << 20},
                                          {"G", 1u << 30},
                                          {"g", 1u << 30},
                                          {"T", 1ULL << 40},
                                          {"t", 1ULL << 40}}};
constexpr std::array<Unit, 3> kDurationUnits{{{"us", 1'000}, {"ms", 1'000'000}, {"s", 1'000'000'000}}};

// What the two kinds of quantity are called in errors.
struct Kind {
  const char* noun;
  const char* units;
  uint64_t limit;
};

// The digits after a number's point, as a fraction of 10 to the power of their count.
struct Fraction {
  uint64_t digits = 0;
  uint64_t scale = 1;
};
constexpr size_t kMaxFractionDigits = 6; // scale times the largest unit stays within 64 bits

// Takes ".5" off the front of `text`. RETURNS: nothing where there is no point, or not 1 to 6 digits after it.
std::optional<Fraction> take_fraction(std::string_view& text) {
  if (!text.starts_with('.'))
    return std::nullopt;
  const size_t end = std::min(text.find_first_not_of("0123456789", 1), text.size());
  if (end == 1 || end > 1 + kMaxFractionDigits)
    return std::nullopt;
  Fraction fraction;
  for (const char digit : text.substr(1, end - 1)) {
    fraction.digits = fraction.digits * 10 + static_cast<uint64_t>(digit - '0');
    fraction.scale *= 10;
  }
  text.remove_prefix(end);
  return fraction;
}

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

  std::string_view suffix = text.substr(static_cast<size_t>(end - text.data()));
  const Fraction fraction = take_fraction(suffix).value_or(Fraction{});
  for (const Unit& unit : units) {
    if (suffix != unit.name)
      continue;
    if (number > kind.limit / unit.factor)
      return usage(too_large);
    const uint64_t part = fraction.digits * unit.factor;
    if (part % fraction.scale != 0)
      return usage(std::string(kind.noun) + " is not a whole number of the smallest unit");
    if (part / fraction.scale > kind.limit - number * unit.factor)
      return usage(too_large);
    return number * unit.factor + part / fraction.scale;
  }
  if (suffix.empty())
    return usage(std::string(kind.noun) + " lacks a unit: expected " + kind.units);
  return usage(std::string("unknown unit '") + std::string(suffix) + "': expected " + kind.units);
}

} // namespace

std::expected<uint64_t, Error> parse_size(std::string_view operation, std::string_view text) {
  return parse_quantity(operation, text, {"size", "K, M, G, T or nothing", std::numeric_limits<uint64_t>::max()},
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
