// SPDX-License-Identifier: Apache-2.0
// Hooks that lose a signal now and then, and delay threads at the points where races are lost.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "tests/stress/random.h"
#include "vmm/test_hooks.h"

namespace stopvisor::stress {

class Nuisance final : public vmm::VcpuHooks {
public:
  explicit Nuisance(uint64_t seed) noexcept : seed_(seed) {}

  // A job that is cut in two often shows a stop that did not wait for the worker.
  void at(vmm::VcpuPoint point, uint32_t /*cpu*/) noexcept override {
    Random random = draw();
    if (!random.one_in(point == vmm::VcpuPoint::kInJob ? 4 : 150))
      return;
    delays.fetch_add(1, std::memory_order_relaxed); // a statistic
    if (random.one_in(2))
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(random.below(300)));
  }
  bool drop_signal(uint32_t /*cpu*/) noexcept override {
    if (!draw().one_in(250))
      return false;
    drops.fetch_add(1, std::memory_order_relaxed); // a statistic
    return true;
  }

  std::atomic<uint64_t> delays{0};
  std::atomic<uint64_t> drops{0};

private:
  Random draw() noexcept { return Random(seed_ + mix(draws_.fetch_add(1, std::memory_order_relaxed))); }

  const uint64_t seed_;
  std::atomic<uint64_t> draws_{0}; // which thread draws which number is not replayed
};

} // namespace stopvisor::stress
