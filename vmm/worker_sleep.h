// SPDX-License-Identifier: Apache-2.0
// How a device worker sleeps, and how it is woken: on a futex, or on descriptors.
//
// A device whose jobs come from our own threads alone (the doorbell) is woken cheapest by a futex. One that the
// kernel wakes too, by an ioeventfd or a packet, must sleep on descriptors. device_worker.cpp tells why nothing is
// slept through; W, R and S are its names.
#pragma once

#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>

#include "vmm/error.h"
#include "vmm/unique_fd.h"
#include "vmm/worker_device.h"

namespace stopvisor::vmm {

class WorkerSleep {
public:
  virtual ~WorkerSleep() = default;
  // W: from here on look() is called again before the worker sleeps. CONTEXT: any thread, does not block.
  virtual void wake() noexcept = 0;
  // R: forgets the wake-ups up to here. CONTEXT: the worker's thread, before each look for something to do.
  virtual void look() noexcept = 0;
  // S: blocks until there was a wake() after look(), or `also` is ready. May return early.
  // CONTEXT: the worker's thread.
  virtual void sleep(const Watch& also) noexcept = 0;
};

class FutexSleep final : public WorkerSleep {
public:
  void wake() noexcept override;
  void look() noexcept override;
  void sleep(const Watch& also) noexcept override; // `also` must be empty

private:
  std::atomic<uint32_t> calls_{0};
  uint32_t seen_ = 0; // the worker's
};

// Sleeps in poll(2) on an eventfd of its own, which KVM may raise as well.
class DescriptorSleep final : public WorkerSleep {
public:
  // RETURNS: kFailed where the host has no more descriptors.
  [[nodiscard]] static std::expected<std::unique_ptr<DescriptorSleep>, Error> create();

  void wake() noexcept override;
  void look() noexcept override;
  void sleep(const Watch& also) noexcept override;

  // The eventfd: whoever adds to it wakes the worker. CONTEXT: any thread.
  [[nodiscard]] int event() const noexcept { return event_.get(); }

private:
  explicit DescriptorSleep(UniqueFd event) noexcept : event_(std::move(event)) {}
  const UniqueFd event_;
  bool raised_ = false; // the worker's: poll() has seen it
};

} // namespace stopvisor::vmm
