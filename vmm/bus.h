// SPDX-License-Identifier: Apache-2.0
// The two buses devices sit on: 16-bit port I/O and memory-mapped I/O.
//
// A device is handed offsets from its own base and accesses of 1, 2, 4 or 8 bytes. Ranges are fixed before
// the first vCPU runs, so that the look-up takes no lock; a device guards its own state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>
#include <vector>

#include "vmm/error.h"

namespace stopvisor::vmm {

// CONTEXT: called from vCPU threads, several at once; must not block and must not call into the stopper.
class BusDevice {
public:
  virtual ~BusDevice() = default;
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  // Fills `data`; a read of a register that does not exist gives all ones.
  virtual void read(uint64_t offset, std::span<std::byte> data) noexcept = 0;
  virtual void write(uint64_t offset, std::span<const std::byte> data) noexcept = 0;
  // Back to the state after power-on: the guest resets. CONTEXT: under a stop, no access is in flight.
  virtual void reset() noexcept {}
};

class Bus {
public:
  // Puts `device` (not owned, must outlive the bus) at [base, base + size).
  // RETURNS: kFailed where the range is empty or overlaps another device's.
  [[nodiscard]] std::expected<void, Error> attach(uint64_t base, uint64_t size, BusDevice& device);

  // Serves one access. An access that no device claims, or that runs over a device's end, reads all ones
  // and writes nothing. RETURNS: whether a device served it.
  bool read(uint64_t address, std::span<std::byte> data) const noexcept;
  bool write(uint64_t address, std::span<const std::byte> data) const noexcept;

  // Calls reset() of every device, in the order of their addresses. CONTEXT: under a stop.
  void reset_devices() const noexcept;

private:
  struct Range {
    uint64_t base;
    uint64_t size;
    BusDevice* device;
  };
  [[nodiscard]] const Range* find(uint64_t address, size_t length) const noexcept;

  std::vector<Range> ranges_; // sorted by base
};

} // namespace stopvisor::vmm
