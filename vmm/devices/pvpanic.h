// SPDX-License-Identifier: Apache-2.0
// The port by which a guest's kernel tells that it has panicked.
//
// The VM goes on: a kernel that panicked may write a dump or reset itself, as its own settings have it. The
// interface is QEMU's (docs/specs/pvpanic.rst), for which Linux has a driver.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "vmm/bus.h"
#include "vmm/state/device_state.h"

namespace stopvisor::vmm {

inline constexpr uint16_t kPvPanicPort = 0x505;

enum class PanicEvent : uint8_t {
  kPanicked = 1,    // and the guest's kernel has nothing to handle it with
  kCrashLoaded = 2, // and a crash kernel will run
};

class PvPanic final : public BusDevice, public StatefulDevice {
public:
  // `tell` is told each event. CONTEXT: on the thread of the vCPU that panics; it must not block for long.
  explicit PvPanic(std::function<void(PanicEvent)> tell);

  [[nodiscard]] std::string_view name() const noexcept override { return "pvpanic"; }
  void read(uint64_t offset, std::span<std::byte> data) noexcept override;
  void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
  void reset() noexcept override;
  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

  // Whether the guest has panicked since it started last. CONTEXT: any thread.
  [[nodiscard]] bool panicked() const noexcept { return panicked_.load(std::memory_order_relaxed); } // by itself
  // How often it has since the VM started. CONTEXT: any thread.
  [[nodiscard]] uint64_t panics() const noexcept { return panics_.load(std::memory_order_relaxed); } // by itself

private:
  const std::function<void(PanicEvent)> tell_;
  std::atomic<bool> panicked_{false};
  std::atomic<uint64_t> panics_{0};
};

} // namespace stopvisor::vmm
