// SPDX-License-Identifier: Apache-2.0
// A driver for tests: sets a device up through its registers and does one request after the other.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/virtio/raw_ring.h"
#include "vmm/guest_memory.h"
#include "vmm/virtio/mmio.h"

namespace stopvisor::vmm::testing {

// The registers a test names; virtio 1.2, 4.2.2.
enum MmioRegister : uint64_t {
  kMagic = 0x00,
  kVersion = 0x04,
  kDeviceId = 0x08,
  kVendorId = 0x0c,
  kDeviceFeatures = 0x10,
  kDeviceFeaturesSelect = 0x14,
  kDriverFeatures = 0x20,
  kDriverFeaturesSelect = 0x24,
  kQueueSelect = 0x30,
  kQueueSizeMax = 0x34,
  kQueueSize = 0x38,
  kQueueReady = 0x44,
  kQueueNotify = 0x50,
  kInterruptStatus = 0x60,
  kInterruptAck = 0x64,
  kStatus = 0x70,
  kQueueDescriptors = 0x80,
  kQueueAvailable = 0x90,
  kQueueUsed = 0xa0,
  kSharedMemoryLength = 0xb0,
  kConfigGeneration = 0xfc,
  kConfig = 0x100,
};

class Driver {
public:
  static constexpr uint64_t kMemoryBytes = 32 << 20;
  static constexpr uint64_t kBuffers = 0x10'0000; // requests are put here

  explicit Driver(virtio::Device& device, uint16_t ring_size = 8)
      : ring(memory, ring_size), mmio(device, {memory, written, [this] { ++wakes; }, [this] { ++interrupts; }}) {}

  [[nodiscard]] uint32_t read(uint64_t offset) {
    uint32_t value = 0;
    mmio.read(offset, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  void write(uint64_t offset, uint32_t value) { mmio.write(offset, std::as_bytes(std::span(&value, 1))); }
  void add_status(uint32_t bits) { write(kStatus, read(kStatus) | bits); }
  [[nodiscard]] uint64_t offered() {
    write(kDeviceFeaturesSelect, 1);
    const uint64_t high = read(kDeviceFeatures);
    write(kDeviceFeaturesSelect, 0);
    return high << 32 | read(kDeviceFeatures);
  }
  // RETURNS: whether the device took them.
  bool negotiate(uint64_t features) {
    write(kStatus, 0);
    add_status(virtio::kAcknowledge);
    add_status(virtio::kDriver);
    write(kDriverFeaturesSelect, 0);
    write(kDriverFeatures, static_cast<uint32_t>(features));
    write(kDriverFeaturesSelect, 1);
    write(kDriverFeatures, static_cast<uint32_t>(features >> 32));
    add_status(virtio::kFeaturesOk);
    return (read(kStatus) & virtio::kFeaturesOk) != 0;
  }
  void set_queue(uint32_t queue, const virtio::Queue::Layout& layout) {
    write(kQueueSelect, queue);
    write(kQueueSize, layout.size);
    for (const auto& [where, address] : {std::pair{kQueueDescriptors, layout.descriptors},
                                         {kQueueAvailable, layout.available},
                                         {kQueueUsed, layout.used}}) {
      write(where, static_cast<uint32_t>(address));
      write(where + 4, static_cast<uint32_t>(address >> 32));
    }
    write(kQueueReady, 1);
  }
  // All of it, with queue 0.
  void start(uint64_t features = virtio::kVersion1) {
    (void)negotiate(features);
    set_queue(0, ring.layout());
    add_status(virtio::kDriverOk);
  }
  // As a worker does until there is nothing left.
  void work() {
    while (mmio.do_job()) {
    }
  }

  struct Answer {
    uint32_t written = 0;
    std::string bytes; // of the writable buffers, all of them
  };
  // One request: buffers with these contents to be read, then buffers of these sizes, filled with '?', to be
  // written.
  Answer request(const std::vector<std::string>& readable, const std::vector<uint32_t>& writable) {
    uint16_t index = 0;
    uint64_t at = kBuffers;
    const size_t count = readable.size() + writable.size();
    const auto describe = [&](uint64_t length, uint16_t flags) {
      const bool last = index + 1U == count;
      ring.describe(index, {at, static_cast<uint32_t>(length), static_cast<uint16_t>(flags | (last ? 0 : kNext)),
                            static_cast<uint16_t>(index + 1)});
      ++index;
      at += length + 64; // not side by side
    };
    for (const std::string& text : readable) {
      ring.put_text(at, text);
      describe(text.size(), 0);
    }
    const uint64_t answer = at;
    for (const uint32_t length : writable) {
      ring.put_text(at, std::string(length, '?'));
      describe(length, kWrite);
    }
    const uint16_t place = ring.used_index();
    ring.offer(0);
    work();
    Answer result;
    if (ring.used_index() == place)
      return result; // there was none
    result.written = ring.used(place).written;
    at = answer;
    for (const uint32_t length : writable) {
      result.bytes += ring.text(at, length);
      at += length + 64;
    }
    return result;
  }

  GuestMemory memory = *GuestMemory::create(kMemoryBytes, MemoryBacking::kAnonymous);
  WrittenPages written{memory.slots()};
  RawRing ring;
  int wakes = 0;
  int interrupts = 0;
  virtio::Mmio mmio;
};

} // namespace stopvisor::vmm::testing
