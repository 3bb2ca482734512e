// SPDX-License-Identifier: Apache-2.0
// A split virtqueue in guest memory as a driver writes it, word by word, so that it can lie (virtio 1.2, 2.7).
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "vmm/guest_memory.h"
#include "vmm/virtio/queue.h"

namespace stopvisor::vmm::testing {

inline constexpr uint16_t kNext = 1, kWrite = 2, kIndirect = 4; // a descriptor's flags

struct RawDescriptor {
  uint64_t address = 0;
  uint32_t length = 0;
  uint16_t flags = 0;
  uint16_t next = 0;
};

class RawRing {
public:
  static constexpr uint64_t kDescriptors = 0x1000, kAvailable = 0x3000, kUsed = 0x5000;

  RawRing(const GuestMemory& memory, uint16_t size, uint64_t base = 0)
      : memory_(memory), size_(size), base_(base) {}

  [[nodiscard]] uint16_t size() const { return size_; }
  [[nodiscard]] virtio::Queue::Layout layout() const {
    virtio::Queue::Layout layout;
    layout.size = size_;
    layout.descriptors = base_ + kDescriptors;
    layout.available = base_ + kAvailable;
    layout.used = base_ + kUsed;
    return layout;
  }

  void describe(uint16_t index, RawDescriptor descriptor) const {
    describe_at(base_ + kDescriptors + uint64_t{16} * index, descriptor);
  }
  void describe_at(uint64_t gpa, RawDescriptor descriptor) const { put(gpa, descriptor); }

  // Puts a chain that begins at `head` into the ring, and shows it.
  void offer(uint16_t head) {
    put(base_ + kAvailable + 4 + uint64_t{2} * (available_ % size_), head);
    set_available_index(static_cast<uint16_t>(available_ + 1));
  }
  void set_available_index(uint16_t index) {
    available_ = index;
    put(base_ + kAvailable + 2, index);
  }
  void set_available_flags(uint16_t flags) const { put(base_ + kAvailable, flags); }
  void set_used_event(uint16_t event) const { put(base_ + kAvailable + 4 + uint64_t{2} * size_, event); }

  [[nodiscard]] uint16_t used_index() const { return get<uint16_t>(base_ + kUsed + 2); }
  [[nodiscard]] uint16_t used_flags() const { return get<uint16_t>(base_ + kUsed); }
  [[nodiscard]] uint16_t available_event() const { return get<uint16_t>(base_ + kUsed + 4 + uint64_t{8} * size_); }
  struct Used {
    uint32_t head = 0;
    uint32_t written = 0;
    bool operator==(const Used&) const = default;
  };
  [[nodiscard]] Used used(uint16_t index) const {
    return get<Used>(base_ + kUsed + 4 + uint64_t{8} * (index % size_));
  }

  template <class Value>
  void put(uint64_t gpa, Value value) const {
    (void)memory_.write(Gpa{gpa}, std::as_bytes(std::span(&value, 1)));
  }
  template <class Value>
  [[nodiscard]] Value get(uint64_t gpa) const {
    Value value{};
    (void)memory_.read(Gpa{gpa}, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  void put_text(uint64_t gpa, const std::string& text) const {
    (void)memory_.write(Gpa{gpa}, std::as_bytes(std::span(text)));
  }
  [[nodiscard]] std::string text(uint64_t gpa, size_t length) const {
    std::string text(length, '\0');
    (void)memory_.read(Gpa{gpa}, std::as_writable_bytes(std::span(text)));
    return text;
  }

private:
  const GuestMemory& memory_;
  const uint16_t size_;
  const uint64_t base_;
  uint16_t available_ = 0;
};

} // namespace stopvisor::vmm::testing
