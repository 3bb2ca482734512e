// SPDX-License-Identifier: Apache-2.0
#include "vmm/guest_address.h"

#include <charconv>
#include <optional>
#include <utility>

#include "vmm/units.h"

namespace stopvisor::vmm {
namespace {

using Kind = GuestAddress::Kind;

// Either an address, or why there is none.
using Parsed = std::expected<GuestAddress, std::string>;

const char* const kExpected = "expected gpa:0x..., gva:0x...[@CPU] or sym:NAME[+0x...][@CPU]";

std::optional<uint32_t> parse_cpu(std::string_view text) {
  uint32_t cpu = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), cpu);
  if (error != std::errc{} || end != text.data() + text.size())
    return std::nullopt;
  return cpu;
}

std::string bad_number(std::string_view text) {
  return "'" + std::string(text) + "' is not a hexadecimal number of 1 to 16 digits after 0x";
}

Parsed parse_physical(std::string_view text) {
  if (text.find('@') != std::string_view::npos)
    return std::unexpected("a guest physical address takes no @vCPU");
  const auto value = parse_hex(text);
  if (!value)
    return std::unexpected(bad_number(text));
  return GuestAddress{Kind::kPhysical, *value, 0, {}};
}

Parsed parse_virtual(std::string_view text) {
  const size_t at = text.find('@');
  const std::string_view number = text.substr(0, at);
  const auto value = parse_hex(number);
  if (!value)
    return std::unexpected(bad_number(number));
  if (at == std::string_view::npos)
    return GuestAddress{Kind::kVirtual, *value, 0, {}};
  const std::string_view cpu_text = text.substr(at + 1);
  const auto cpu = parse_cpu(cpu_text);
  if (!cpu)
    return std::unexpected("'" + std::string(cpu_text) + "' is not a vCPU number");
  return GuestAddress{Kind::kVirtual, *value, *cpu, {}};
}

Parsed parse_symbol(std::string_view text) {
  const size_t at = text.find('@');
  const std::string_view cpu_text = at == std::string_view::npos ? "0" : text.substr(at + 1);
  text = text.substr(0, at);
  const size_t plus = text.rfind('+');
  const std::string_view name = text.substr(0, plus);
  if (name.empty())
    return std::unexpected("the symbol's name is missing");
  const auto cpu = parse_cpu(cpu_text);
  if (!cpu)
    return std::unexpected("'" + std::string(cpu_text) + "' is not a CPU number");
  if (plus == std::string_view::npos)
    return GuestAddress{Kind::kSymbol, 0, *cpu, std::string(name)};
  const std::string_view number = text.substr(plus + 1);
  const auto offset = parse_hex(number);
  if (!offset)
    return std::unexpected(bad_number(number));
  return GuestAddress{Kind::kSymbol, *offset, *cpu, std::string(name)};
}

Parsed parse(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos)
    return std::unexpected(std::string("not an address: ") + kExpected);
  const std::string_view prefix = text.substr(0, colon);
  const std::string_view rest = text.substr(colon + 1);
  if (prefix == "gpa")
    return parse_physical(rest);
  if (prefix == "gva")
    return parse_virtual(rest);
  if (prefix == "sym")
    return parse_symbol(rest);
  return std::unexpected("unknown kind of address '" + std::string(prefix) + "': " + kExpected);
}

} // namespace

std::expected<GuestAddress, Error> parse_guest_address(std::string_view operation, std::string_view text) {
  auto parsed = parse(text);
  if (!parsed)
    return std::unexpected(
        Error{std::string(operation), std::string(text), std::move(parsed.error()), Status::kUsage});
  return *std::move(parsed);
}

std::string to_string(const GuestAddress& address) {
  const std::string cpu = address.cpu == 0 ? "" : "@" + std::to_string(address.cpu);
  switch (address.kind) {
  case Kind::kPhysical:
    return "gpa:" + to_hex(address.value);
  case Kind::kVirtual:
    return "gva:" + to_hex(address.value) + cpu;
  case Kind::kSymbol:
    return "sym:" + address.symbol + (address.value == 0 ? "" : "+" + to_hex(address.value)) + cpu;
  }
  return {};
}

} // namespace stopvisor::vmm
