// SPDX-License-Identifier: Apache-2.0
// The two ways PCs have always been reset: the keyboard controller's pulse, and the reset control register.
//
// Kernels without a driver for our power device use these. Nothing else of a keyboard controller is there: its
// status reads as "idle, nothing to fetch", which is what a kernel waits for before the pulse.
#pragma once

#include <atomic>

#include "vmm/bus.h"
#include "vmm/guest_request.h"

namespace stopvisor::vmm {

inline constexpr uint16_t kKeyboardCommandPort = 0x64;
inline constexpr uint8_t kKeyboardPulseReset = 0xfe; // 8042: pulse output line 0, which is the CPU's reset
inline constexpr uint16_t kResetControlPort = 0xcf9;
inline constexpr uint8_t kResetControlCpu = 0x04; // Intel ICH data sheets, RST_CNT: bit 2 starts the reset

class KeyboardResetPort final : public BusDevice {
public:
  explicit KeyboardResetPort(GuestRequestSink sink) : sink_(std::move(sink)) {}
  [[nodiscard]] std::string_view name() const noexcept override { return "keyboard reset"; }
  void read(uint64_t offset, std::span<std::byte> data) noexcept override;
  void write(uint64_t offset, std::span<const std::byte> data) noexcept override;

private:
  const GuestRequestSink sink_;
};

class ResetControlPort final : public BusDevice {
public:
  explicit ResetControlPort(GuestRequestSink sink) : sink_(std::move(sink)) {}
  [[nodiscard]] std::string_view name() const noexcept override { return "reset control"; }
  void read(uint64_t offset, std::span<std::byte> data) noexcept override;
  void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
  void reset() noexcept override;

private:
  const GuestRequestSink sink_;
  std::atomic<uint8_t> value_{0};
};

} // namespace stopvisor::vmm
