// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/place.h"

#include <charconv>

#include "vmm/guest_address.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

using Kind = Place::Kind;
constexpr size_t kLongestText = 1200; // a symbol's name has 1024 at most
constexpr uint64_t kTableBits = 0x000f'ffff'ffff'f000;

std::expected<Place, std::string> in_space(uint64_t value, std::string_view space) {
  if (space == "kernel")
    return Place{Kind::kKernel, value, 0, {}};
  if (space.starts_with("cr3=")) {
    const auto cr3 = vmm::parse_hex(space.substr(4));
    if (!cr3 || (*cr3 & ~kTableBits) != 0)
      return std::unexpected("cr3= must be the address of a page table, 0x... and a multiple of 0x1000");
    return Place{Kind::kCr3, value, *cr3, {}};
  }
  const std::string_view digits = space.substr(4);
  uint32_t pid = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), pid);
  if (error != std::errc{} || end != digits.data() + digits.size() || pid == 0)
    return std::unexpected("pid= must be the number of a process");
  return Place{Kind::kProcess, value, pid, {}};
}

bool names_a_space(std::string_view text) {
  return text == "kernel" || text.starts_with("cr3=") || text.starts_with("pid=");
}

} // namespace

std::expected<Place, std::string> parse_place(std::string_view text) {
  if (text.size() > kLongestText)
    return std::unexpected("is longer than " + std::to_string(kLongestText) + " characters");
  const size_t at = text.rfind('@');
  if (text.starts_with("gva:") && at != std::string_view::npos && names_a_space(text.substr(at + 1))) {
    const auto value = vmm::parse_hex(text.substr(4, at - 4));
    if (!value)
      return std::unexpected("'" + std::string(text.substr(4, at - 4)) +
                             "' is not a hexadecimal number of 1 to 16 digits after 0x");
    return in_space(*value, text.substr(at + 1));
  }
  auto address = vmm::parse_guest_address("", text);
  if (!address)
    return std::unexpected(std::move(address.error().reason));
  switch (address->kind) {
  case vmm::GuestAddress::Kind::kPhysical:
    return Place{Kind::kPhysical, address->value, 0, {}};
  case vmm::GuestAddress::Kind::kVirtual:
    return Place{Kind::kVcpu, address->value, address->cpu, {}};
  case vmm::GuestAddress::Kind::kSymbol:
    break;
  }
  return Place{Kind::kSymbol, address->value, address->cpu, std::move(address->symbol)};
}

std::string to_string(const Place& place) {
  const std::string number = vmm::to_hex(place.value);
  switch (place.kind) {
  case Kind::kPhysical:
    return "gpa:" + number;
  case Kind::kVcpu:
    return "gva:" + number + (place.of == 0 ? "" : "@" + std::to_string(place.of));
  case Kind::kCr3:
    return "gva:" + number + "@cr3=" + vmm::to_hex(place.of);
  case Kind::kKernel:
    return "gva:" + number + "@kernel";
  case Kind::kProcess:
    return "gva:" + number + "@pid=" + std::to_string(place.of);
  case Kind::kSymbol:
    return "sym:" + place.symbol + (place.value == 0 ? "" : "+" + number) +
           (place.of == 0 ? "" : "@" + std::to_string(place.of));
  }
  return {};
}

bool needs_kernel(const Place& place) noexcept {
  return place.kind == Kind::kKernel || place.kind == Kind::kProcess || place.kind == Kind::kSymbol;
}

} // namespace stopvisor::patch
