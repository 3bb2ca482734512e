// SPDX-License-Identifier: Apache-2.0
// The power device: power-off, reset and crash on the guest's word, the power button on the host's.
//
// One 4-byte port; guest/probe_abi.h is its data sheet.
#pragma once

#include <atomic>
#include <functional>

#include "vmm/bus.h"
#include "vmm/guest_request.h"
#include "vmm/state/device_state.h"

namespace stopvisor::vmm {

class PowerDevice final : public BusDevice, public StatefulDevice {
public:
  // `pulse_interrupt` raises and lowers probe::kPowerGsi once; it must be a leaf.
  PowerDevice(GuestRequestSink sink, std::function<void()> pulse_interrupt);

  [[nodiscard]] std::string_view name() const noexcept override { return "power"; }
  void read(uint64_t offset, std::span<std::byte> data) noexcept override;
  void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
  void reset() noexcept override;
  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

  // Presses the button. CONTEXT: any thread, does not block.
  void press() noexcept;

private:
  const GuestRequestSink sink_;
  const std::function<void()> pulse_interrupt_;
  std::atomic<bool> pressed_{false};
};

} // namespace stopvisor::vmm
