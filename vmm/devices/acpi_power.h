// SPDX-License-Identifier: Apache-2.0
// ACPI's registers of this machine: sleep, reset, and what the generic event device tells of.
//
// A guest switches itself off by the sleep control register, resets itself by the reset register, and learns of its
// power button by the event register, whose interrupt is acpi::kEventGsi. Source: ACPI 6.5, 4.8.3.7 (sleep
// registers), 4.8.3.6 (reset register); the event register is ours, read by the method _EVT in acpi/dsdt.cpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

#include "vmm/bus.h"
#include "vmm/guest_request.h"
#include "vmm/state/device_state.h"

namespace stopvisor::vmm {

inline constexpr uint16_t kAcpiPowerPort = 0x640;

class AcpiPower final : public BusDevice, public StatefulDevice {
public:
  static constexpr uint32_t kPortCount = 8;
  static constexpr uint16_t kSleepControlOffset = 0;
  static constexpr uint16_t kSleepStatusOffset = 1;
  static constexpr uint16_t kResetOffset = 2;
  static constexpr uint16_t kEventOffset = 4; // 32 bits; a read clears them
  static constexpr uint8_t kSleepTypeS5 = 5;
  static constexpr uint8_t kResetValue = 1;
  static constexpr uint32_t kButtonEvent = 1;
  static constexpr uint32_t kGenerationEvent = 2;

  // `pulse_interrupt` raises and lowers the event interrupt once; it must be a leaf. Calls follow
  // each other: of two at once one could find the line raised, and be no edge.
  AcpiPower(GuestRequestSink sink, std::function<void()> pulse_interrupt);

  [[nodiscard]] std::string_view name() const noexcept override { return "ACPI power"; }
  void read(uint64_t offset, std::span<std::byte> data) noexcept override;
  void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
  void reset() noexcept override;
  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

  // Presses the power button. CONTEXT: any thread, does not block.
  void press_button() noexcept { raise(kButtonEvent); }
  // Tells that the VM generation ID has changed. The same.
  void tell_generation() noexcept { raise(kGenerationEvent); }

private:
  void raise(uint32_t event) noexcept;

  const GuestRequestSink sink_;
  const std::function<void()> pulse_interrupt_;
  std::atomic<uint32_t> pending_{0};
  std::mutex pulse_lock_; // a leaf but for the interrupt
};

} // namespace stopvisor::vmm
