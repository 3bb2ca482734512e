// SPDX-License-Identifier: Apache-2.0
// The life of a VM: who ended it first and why, and who asked for a reset.
//
//   kCreated ---- start() ----> running ---- end() ----> ending ---- all joined ----> ended
//                                 |  ^
//            request_reset()      v  |  reset_done()
//                               a reset is due
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>

#include "vmm/vm.h"

namespace stopvisor::vmm {

class VmLife {
public:
  // `let_out` is called once, by the first end(), after ending() has become true: it makes every vCPU thread
  // look. It must not block.
  explicit VmLife(std::function<void()> let_out) : let_out_(std::move(let_out)) {}

  // Whether vCPU threads must leave. CONTEXT: any thread; one atomic read.
  [[nodiscard]] bool ending() const noexcept { return ending_.load(std::memory_order_acquire); } // E1

  // Ends the VM for this reason; the first one given counts. CONTEXT: any thread, vCPU threads and callbacks under
  // a stop included; does not block.
  void end(VmEnd reason) noexcept;
  // Blocks until end() was called.
  void await_end();
  // The first reason. CONTEXT: after ending().
  [[nodiscard]] VmEnd reason() const;

  // A vCPU asks for a reset, and runs no more guest code until it was made. CONTEXT: its own thread.
  void request_reset() noexcept;
  // Blocks until a reset is due (true) or the VM ends (false). CONTEXT: the one thread that makes resets.
  [[nodiscard]] bool await_reset();
  // Whether one was asked for and is not made yet. CONTEXT: any thread.
  [[nodiscard]] bool reset_due() const;
  // What was asked for up to now has been done. CONTEXT: under the stop that made the reset: every vCPU that had
  // asked is held, so that no request made after the reset can be taken for one made before it.
  void reset_done() noexcept;

private:
  const std::function<void()> let_out_;
  std::atomic<bool> ending_{false};
  mutable std::mutex lock_; // a leaf
  std::condition_variable changed_;
  std::optional<VmEnd> reason_; // under the lock
  bool reset_due_ = false;      // under the lock
};

} // namespace stopvisor::vmm
