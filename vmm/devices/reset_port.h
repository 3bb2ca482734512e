// SPDX-License-Identifier: Apache-2.0
// The reset control register, by which PCs are reset, as by the keyboard controller's pulse (i8042.h).
//
// Kernels without a driver for our power device use one of these.
#pragma once

#include <atomic>

#include "vmm/bus.h"
#include "vmm/guest_request.h"
#include "vmm/state/device_state.h"

namespace stopvisor::vmm {

inline constexpr uint16_t kResetControlPort = 0xcf9;
inline constexpr uint8_t kResetControlCpu = 0x04; // Intel ICH data sheets, RST_CNT: bit 2 starts the reset

class ResetControlPort final : public BusDevice, public StatefulDevice {
public:
  explicit ResetControlPort(GuestRequestSink sink) : sink_(std::move(sink)) {}
  [[nodiscard]] std::string_view name() const noexcept override { return "reset control"; }
  void read(uint64_t offset, std::span<std::byte> data) noexcept override;
  void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
  void reset() noexcept override;
  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

private:
  const GuestRequestSink sink_;
  std::atomic<uint8_t> value_{0};
};

} // namespace stopvisor::vmm
