// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/reset_port.h"

#include <algorithm>

namespace stopvisor::vmm {

void ResetControlPort::read(uint64_t /*offset*/, std::span<std::byte> data) noexcept {
  // relaxed: a register by itself.
  std::fill(data.begin(), data.end(), std::byte{value_.load(std::memory_order_relaxed)});
}

void ResetControlPort::write(uint64_t /*offset*/, std::span<const std::byte> data) noexcept {
  if (data.size() != 1)
    return;
  const auto value = std::to_integer<uint8_t>(data[0]);
  value_.store(value & static_cast<uint8_t>(~kResetControlCpu), std::memory_order_relaxed); // as in read()
  if ((value & kResetControlCpu) != 0)
    sink_(GuestRequest::kReset);
}

void ResetControlPort::save_state(StateWriter& to) const {
  to.put(value_.load(std::memory_order_relaxed)); // as in read()
}

void ResetControlPort::restore_state(StateReader& from) {
  const auto value = from.get<uint8_t>();
  from.refuse_unless((value & kResetControlCpu) == 0, "a reset that is being made");
  value_.store(value, std::memory_order_relaxed); // as in read()
}

void ResetControlPort::reset() noexcept {
  value_.store(0, std::memory_order_relaxed);
} // as in read()

} // namespace stopvisor::vmm
