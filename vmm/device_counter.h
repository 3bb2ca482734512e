// SPDX-License-Identifier: Apache-2.0
// What a device has counted of its work, by name: for `status`, without a stop.
#pragma once

#include <atomic>
#include <cstdint>

namespace stopvisor::vmm {

struct DeviceCounter {
  const char* name; // as documents have it: "bytes_read"
  uint64_t value;
};

// Counts up in one thread at a time (a device's jobs); any may read. Relaxed, as each is by itself: of two that
// belong together a reader may see one before the other. One writer needs no locked instruction.
class WorkCounter {
public:
  void add(uint64_t amount) noexcept {
    value_.store(value_.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
  [[nodiscard]] uint64_t value() const noexcept { return value_.load(std::memory_order_relaxed); }

private:
  std::atomic<uint64_t> value_{0};
};

} // namespace stopvisor::vmm
