// SPDX-License-Identifier: Apache-2.0
// What one virtio device is: all that a file like block.cpp has to say. The rest (registers, negotiation, queues,
// threads, stops) is done around it, by mmio.h and DeviceWorker.
//
// To add a device: implement this in a file of its own, and give it a line in device_table.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vmm/device_counter.h"
#include "vmm/state/device_state.h"
#include "vmm/virtio/queue.h"
#include "vmm/worker_device.h"

namespace stopvisor::vmm::virtio {

using Queues = std::span<const std::unique_ptr<Queue>>;

class Device : public StatefulDevice {
public:
  // ---- what it is; the same all its life. CONTEXT: any thread ------------------------------------------------

  // For people: "disk0". 15 bytes at most, as it is its thread's name as well.
  [[nodiscard]] virtual const std::string& name() const noexcept = 0;
  [[nodiscard]] virtual uint32_t type() const noexcept = 0; // virtio 1.2, 5
  // Its own feature bits; those of the ring and the transport are added by the transport.
  [[nodiscard]] virtual uint64_t features() const noexcept = 0;
  // The largest size of each queue: a power of two, kMaxQueueSize at most.
  [[nodiscard]] virtual std::span<const uint16_t> queue_sizes() const noexcept = 0;
  // Its configuration space. Where it changes, config_changed() is to be called after each change, and single bytes
  // must be written whole (the driver reads while it changes, and then again).
  [[nodiscard]] virtual std::span<const std::byte> config() const noexcept = 0;

  // The image of a disk: a descriptor that is the device's, and lives as long; -1 where it is none.
  [[nodiscard]] virtual int image() const noexcept { return -1; }

  // What a user should know of it ("the tap is gone"); "" where all is well. CONTEXT: any thread.
  [[nodiscard]] virtual std::string trouble() const { return {}; }

  // What it has counted since the VM started, also over resets; always the same names in the same order.
  // CONTEXT: any thread.
  [[nodiscard]] virtual std::vector<DeviceCounter> counters() const { return {}; }

  // Tells whoever is on the other side that the guest is here now. CONTEXT: any thread, also while it serves; does
  // not block.
  virtual void announce() const noexcept {}

  // Who tells the driver of such a change. CONTEXT: the transport, before there is a driver.
  void on_config_change(std::function<void()> tell) { tell_of_config_ = std::move(tell); }

  // ---- what it does. CONTEXT: one at a time, most on the worker's thread; may touch queues and guest memory ---

  // The driver is ready (DRIVER_OK), having taken `features`.
  virtual void start(uint64_t features, Queues queues) noexcept = 0;
  // Does one job, if there is one: a request, or a few short ones. A stop waits for its end, so it is short and
  // leaves nothing half done: whatever was taken from a queue is back in it, or put() and published. A queue from
  // which everything was taken is asked for its next notice (Queue::ask_for_notice()) before this returns false.
  // RETURNS: false where nothing was done, and nothing is to do before the next notice, or watch().
  // CONTEXT: the worker's thread, between start() and reset().
  [[nodiscard]] virtual bool serve(Queues queues) noexcept = 0;
  // As WorkerDevice::watch(), between start() and reset().
  [[nodiscard]] virtual Watch watch() noexcept { return {}; }
  // Forgets everything the driver told it: the state after construction. The queues are stopped already.
  // CONTEXT: no job is going on; any thread.
  virtual void reset() noexcept = 0;

  // What is between two jobs and in no queue; and what the guest was told of the host's side and cannot change
  // under it. As StatefulDevice has them; where the driver was ready, start() was called before restore_state().
  void save_state(StateWriter& /*to*/) const override {}
  void restore_state(StateReader& /*from*/) override {}

protected:
  // CONTEXT: as serve().
  void config_changed() const noexcept {
    if (tell_of_config_)
      tell_of_config_();
  }

private:
  std::function<void()> tell_of_config_;
};

// A device whose queues are all alike: each chain is a request with an answer, done in order.
class RequestDevice : public Device {
public:
  void start(uint64_t features, Queues /*queues*/) noexcept override { features_ = features; }
  [[nodiscard]] bool serve(Queues queues) noexcept final;
  void reset() noexcept override { features_ = 0; }

protected:
  // Serves one request. RETURNS: how many of the writable bytes it has filled, the first ones.
  [[nodiscard]] virtual uint32_t handle(const Chain& request) noexcept = 0;
  [[nodiscard]] uint64_t taken_features() const noexcept { return features_; }

private:
  uint64_t features_ = 0; // that the driver has taken
  Chain chain_;           // the one being served
};

} // namespace stopvisor::vmm::virtio
