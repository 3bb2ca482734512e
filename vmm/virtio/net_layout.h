// SPDX-License-Identifier: Apache-2.0
// What a network device and its driver agree on: virtio 1.2, 5.1. (linux/virtio_net.h is no C++.)
#pragma once

#include <array>
#include <cstdint>

namespace stopvisor::vmm::virtio::net {

inline constexpr uint32_t kDeviceType = 1;                     // 5
inline constexpr size_t kReceiveQueue = 0, kTransmitQueue = 1; // 5.1.2

// 5.1.3: feature bits
enum Feature : uint64_t {
  kChecksum = 1U << 0,      // the device finishes checksums of what it is given
  kGuestChecksum = 1U << 1, // the driver takes frames whose checksum is not finished
  kMtu = 1U << 3,           // Config::mtu is there
  kMac = 1U << 5,           // Config::mac is there
  kGuestTso4 = 1U << 7,     // the driver takes frames that are several TCP segments: IPv4, IPv6, with ECN
  kGuestTso6 = 1U << 8,
  kGuestEcn = 1U << 9,
  kHostTso4 = 1U << 11, // the device takes them
  kHostTso6 = 1U << 12,
  kHostEcn = 1U << 13,
  kMergeBuffers = 1U << 15, // a received frame may be in several chains
  kStatus = 1U << 16,       // Config::status is there
};

// 5.1.4: configuration space
struct Config {
  std::array<uint8_t, 6> mac;
  uint16_t status;
  uint16_t max_queue_pairs;
  uint16_t mtu;
};
inline constexpr uint16_t kLinkUp = 1; // in Config::status
inline constexpr uint32_t kMinMtu = 68, kMaxMtu = 0xffff;

// 5.1.6: before each frame
struct Header {
  uint8_t flags;
  uint8_t segmentation;
  uint16_t header_bytes;
  uint16_t segment_bytes;
  uint16_t checksum_start;
  uint16_t checksum_offset;
  uint16_t buffers; // chains that a received frame is in; of no meaning in one that is sent
};
static_assert(sizeof(Header) == 12);

} // namespace stopvisor::vmm::virtio::net
