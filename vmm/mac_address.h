// SPDX-License-Identifier: Apache-2.0
// An Ethernet (MAC) address, as users write it, and the one a network device has where nobody gave it one.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace stopvisor::vmm {

struct MacAddress {
  std::array<uint8_t, 6> bytes{};

  // A station's own: neither a group address (multicast, broadcast) nor all zeros.
  [[nodiscard]] bool is_station() const noexcept;
  [[nodiscard]] std::string text() const; // "02:5a:00:00:00:01"
  bool operator==(const MacAddress&) const = default;
};

// Parses six bytes of two hexadecimal digits with colons between them, nothing around them.
// RETURNS: nothing where that is not so.
[[nodiscard]] std::optional<MacAddress> parse_mac(std::string_view text);

// The address of the `index`th network device of the VM `vm_name`: locally administered (IEEE 802, bit 1 of the
// first byte), and the same each time, so that the guest and its DHCP server know the machine again.
[[nodiscard]] MacAddress default_mac(std::string_view vm_name, uint32_t index);

} // namespace stopvisor::vmm
