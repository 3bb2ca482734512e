// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/power.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "guest/probe_abi.h"

namespace stopvisor::vmm {

PowerDevice::PowerDevice(GuestRequestSink sink, std::function<void()> pulse_interrupt)
    : sink_(std::move(sink)), pulse_interrupt_(std::move(pulse_interrupt)) {}

void PowerDevice::read(uint64_t offset, std::span<std::byte> data) noexcept {
  if (offset != 0 || data.size() != sizeof(uint32_t)) {
    std::fill(data.begin(), data.end(), std::byte{0xff});
    return;
  }
  // acquire: pairs with press(); whoever reads the bit after the interrupt sees it.
  const uint32_t status = pressed_.load(std::memory_order_acquire) ? probe::kPowerStatusButton : 0;
  std::memcpy(data.data(), &status, sizeof status);
}

void PowerDevice::write(uint64_t offset, std::span<const std::byte> data) noexcept {
  uint32_t command = 0;
  if (offset != 0 || data.size() != sizeof command)
    return;
  std::memcpy(&command, data.data(), sizeof command);
  switch (command) {
  case probe::kPowerOff:
    return sink_(GuestRequest::kPowerOff);
  case probe::kPowerReset:
    return sink_(GuestRequest::kReset);
  case probe::kPowerCrash:
    return sink_(GuestRequest::kCrash);
  case probe::kPowerButtonClear:
    return pressed_.store(false, std::memory_order_release); // pairs with read()
  default:
    return; // a register that ignores what it does not know
  }
}

void PowerDevice::reset() noexcept {
  pressed_.store(false, std::memory_order_release);
} // pairs with read()

void PowerDevice::save_state(StateWriter& to) const {
  to.put(pressed_.load(std::memory_order_acquire)); // pairs with press()
}

void PowerDevice::restore_state(StateReader& from) {
  pressed_.store(from.get_flag(), std::memory_order_release); // pairs with read()
}

void PowerDevice::press() noexcept {
  pressed_.store(true, std::memory_order_release); // pairs with read(); before the interrupt that tells of it
  pulse_interrupt_();
}

} // namespace stopvisor::vmm
