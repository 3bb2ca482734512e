// SPDX-License-Identifier: Apache-2.0
// A frame that tells switches where a station is: a RARP request of the station for its own address, as a broadcast
// (RFC 903). It needs to know no network address, and nobody has to answer.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "vmm/mac_address.h"

namespace stopvisor::vmm::virtio {

inline constexpr size_t kLeastFrame = 60; // of Ethernet, without its checksum

[[nodiscard]] inline std::array<std::byte, kLeastFrame> rarp_announcement(const MacAddress& mac) noexcept {
  std::array<std::byte, kLeastFrame> frame{};
  size_t at = 0;
  const auto put = [&](std::initializer_list<uint8_t> bytes) {
    for (const uint8_t byte : bytes)
      frame[at++] = std::byte{byte};
  };
  const auto put_mac = [&] {
    for (const uint8_t byte : mac.bytes)
      frame[at++] = std::byte{byte};
  };
  put({0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); // to everybody
  put_mac();
  put({0x80, 0x35}); // RARP
  put({0, 1, 8, 0}); // of Ethernet, for IPv4
  put({6, 4, 0, 3}); // address lengths; "request reverse"
  put_mac();         // who asks
  put({0, 0, 0, 0}); // its network address is not known
  put_mac();         // whose address is asked for
  return frame;      // that one's is what is not known; the rest is padding
}

} // namespace stopvisor::vmm::virtio
