// SPDX-License-Identifier: Apache-2.0
// Slows a guest that writes faster than a link can carry: it is held for a fraction of its time, by stops.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "vmm/vm.h"

namespace stopvisor::migrate {

class Throttle {
public:
  // Begins at 0. `vm` outlives the object.
  explicit Throttle(vmm::Vm& vm);
  ~Throttle() { end(); }
  Throttle(const Throttle&) = delete;
  Throttle& operator=(const Throttle&) = delete;

  // Of each of its periods. CONTEXT, these: any thread.
  void set(double fraction) noexcept;
  // Lets the guest go, for good. CONTEXT: not under a stop; waits for a stop that is under way.
  void end() noexcept;

  struct Figures {
    double fraction = 0;                  // that is wanted
    uint64_t stops = 0;                   // that were made for it
    std::chrono::nanoseconds held_for{0}; // by them, all in all
  };
  [[nodiscard]] Figures figures() const noexcept;

private:
  void run(const std::stop_token& stop);

  vmm::Vm& vm_;
  mutable std::mutex mutex_; // a leaf
  std::condition_variable_any changed_;
  Figures figures_;     // under mutex_
  std::jthread thread_; // last
};

} // namespace stopvisor::migrate
