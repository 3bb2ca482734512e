// SPDX-License-Identifier: Apache-2.0
// One device's registers: virtio over MMIO, version 2 (virtio 1.2, 4.2), between the driver, the device and its
// worker.
//
//   driver (vCPU threads) -- registers --> Mmio <-- do_job() -- DeviceWorker
//                                           |  Device, Queues
//
// Status, as the driver moves it: reset -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK; from anywhere back to
// reset, and to FAILED. We add DEVICE_NEEDS_RESET where a queue is broken; the device rests from there on.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "vmm/bus.h"
#include "vmm/state/device_state.h"
#include "vmm/virtio/device.h"
#include "vmm/virtio/turn.h"
#include "vmm/worker_device.h"

namespace stopvisor::vmm::virtio {
inline constexpr uint64_t kQueueNotify = 0x50; // the register to which a driver's notices go, 4 bytes

// Feature bits of ring and transport: virtio 1.2, 6.
inline constexpr uint64_t kIndirectDescriptors = uint64_t{1} << 28;
inline constexpr uint64_t kEventIndex = uint64_t{1} << 29;
inline constexpr uint64_t kVersion1 = uint64_t{1} << 32;

// Device status bits: virtio 1.2, 2.1.
enum StatusBit : uint32_t {
  kAcknowledge = 1,
  kDriver = 2,
  kDriverOk = 4,
  kFeaturesOk = 8,
  kNeedsReset = 0x40,
  kFailed = 0x80,
};

class Mmio final : public BusDevice, public WorkerDevice, public StatefulDevice {
public:
  struct Surroundings {
    const GuestMemory& memory;
    WrittenPages& written;
    std::function<void()> wake;      // the worker looks again; any thread
    std::function<void()> interrupt; // an edge on the device's line; any thread
  };
  // `device` outlives it.
  Mmio(Device& device, Surroundings around);

  // BusDevice
  [[nodiscard]] std::string_view name() const noexcept override { return device_.name(); }
  void read(uint64_t offset, std::span<std::byte> data) noexcept override;
  void write(uint64_t offset, std::span<const std::byte> data) noexcept override;
  // Also blocks for the end of a job, as a driver's reset does; under a stop there is none.
  void reset() noexcept override;

  // StatefulDevice: registers and queues; the device behind them has a state of its own.
  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;
  // An interrupt whose cause the driver has not acknowledged may have been on its way between KVM's eventfd and the
  // interrupt controller when the state was saved: then it is in neither. One too many finds nothing to do.
  // CONTEXT: once, after everything was restored.
  void raise_again() const;

  // WorkerDevice
  [[nodiscard]] bool do_job() noexcept override;
  [[nodiscard]] Watch watch() noexcept override;

  // The device's configuration space has changed. CONTEXT: the device's worker.
  void config_changed() noexcept;

  // Live values. CONTEXT: any thread.
  [[nodiscard]] uint32_t status() const noexcept { return status_.load(std::memory_order_acquire); } // VS1
  [[nodiscard]] uint64_t chains_done() const noexcept;
  // Why the device needs a reset; "" where it does not.
  [[nodiscard]] std::string broken() const noexcept;

private:
  enum InterruptCause : uint32_t { kUsedBuffer = 1, kConfigChange = 2 };
  // What the driver has said of one queue.
  struct QueueSetting {
    uint32_t size = 0;
    uint64_t descriptors = 0;
    uint64_t available = 0;
    uint64_t used = 0;
    bool ready = false;
  };

  [[nodiscard]] uint32_t read_register(uint64_t offset) noexcept;
  [[nodiscard]] uint32_t read_setting(uint64_t offset) noexcept;
  void write_register(uint64_t offset, uint32_t value) noexcept;
  void write_queue(uint64_t offset, uint32_t value) noexcept;
  void write_status(uint32_t value) noexcept;
  void make_ready(uint32_t queue, bool ready) noexcept;
  void reset_all() noexcept;
  void need_reset(const char* why) noexcept;
  void raise(InterruptCause cause) noexcept;
  bool check_queues() noexcept;
  [[nodiscard]] bool runs() const noexcept;
  [[nodiscard]] Queue::Layout layout_of(uint32_t queue) const noexcept;

  Device& device_;
  const Surroundings around_;
  const uint64_t offered_;
  std::vector<std::unique_ptr<Queue>> queues_; // started and stopped under turn_

  mutable std::mutex lock_; // the driver's side; before turn_. Guards, until the blank line:
  uint32_t device_features_select_ = 0;
  uint32_t driver_features_select_ = 0;
  uint64_t driver_features_ = 0;
  uint32_t queue_select_ = 0;
  std::vector<QueueSetting> settings_;

  Turn turn_;                                // the device and its queues are used by one thread at a time
  std::atomic<uint32_t> status_{0};          // written under turn_
  std::atomic<const char*> broken_{nullptr}; // the same
  std::atomic<uint32_t> interrupt_status_{0};
  std::atomic<uint32_t> config_generation_{0};
};

} // namespace stopvisor::vmm::virtio
