// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/acpi_power.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace stopvisor::vmm {
namespace {

// Sleep control: the type of sleep, and the bit that starts it.
constexpr unsigned kSleepTypeShift = 2;
constexpr uint8_t kSleepTypeMask = 0x7;
constexpr uint8_t kSleepEnable = 0x20;

} // namespace

AcpiPower::AcpiPower(GuestRequestSink sink, std::function<void()> pulse_interrupt)
    : sink_(std::move(sink)), pulse_interrupt_(std::move(pulse_interrupt)) {}

void AcpiPower::read(uint64_t offset, std::span<std::byte> data) noexcept {
  if (offset == kEventOffset && data.size() == sizeof(uint32_t)) {
    // acquire: pairs with raise(); an event raised after this has an interrupt of its own to come.
    const uint32_t events = pending_.exchange(0, std::memory_order_acquire);
    std::memcpy(data.data(), &events, sizeof events);
    return;
  }
  // The write-only bits of the sleep registers and the reset register read as zeros.
  const bool is_register = offset <= kResetOffset && data.size() == 1;
  std::fill(data.begin(), data.end(), std::byte{is_register ? uint8_t{0} : uint8_t{0xff}});
}

void AcpiPower::write(uint64_t offset, std::span<const std::byte> data) noexcept {
  if (data.size() != 1)
    return;
  const auto value = std::to_integer<uint8_t>(data[0]);
  if (offset == kSleepControlOffset && (value & kSleepEnable) != 0 &&
      (value >> kSleepTypeShift & kSleepTypeMask) == kSleepTypeS5)
    sink_(GuestRequest::kPowerOff);
  else if (offset == kResetOffset && value == kResetValue)
    sink_(GuestRequest::kReset);
}

void AcpiPower::reset() noexcept {
  pending_.store(0, std::memory_order_relaxed); // under a stop: nobody reads or raises
}

void AcpiPower::save_state(StateWriter& to) const {
  to.put(pending_.load(std::memory_order_acquire)); // pairs with raise()
}

void AcpiPower::restore_state(StateReader& from) {
  const auto pending = from.get<uint32_t>();
  from.refuse_unless((pending & ~(kButtonEvent | kGenerationEvent)) == 0, "an event that there is not");
  pending_.store(pending, std::memory_order_release); // pairs with read()
}

void AcpiPower::raise(uint32_t event) noexcept {
  pending_.fetch_or(event, std::memory_order_release); // pairs with read(); before the interrupt that tells of it
  const std::lock_guard guard(pulse_lock_);
  pulse_interrupt_();
}

} // namespace stopvisor::vmm
