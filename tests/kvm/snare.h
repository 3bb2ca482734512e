// SPDX-License-Identifier: Apache-2.0
// Hooks that catch one vCPU's thread at one step of its loop, and limit the signals that get through.
#pragma once

#include <atomic>
#include <cstdint>
#include <semaphore>
#include <string_view>

#include "vmm/test_hooks.h"
#include "vmm/vm.h"

namespace stopvisor::vmm::testing {

// Stops one thread at one point, once, and limits the signals that get through.
class Snare final : public VcpuHooks {
public:
  void at(VcpuPoint point, uint32_t cpu) noexcept override {
    if (point == VcpuPoint::kAfterSignal)
      signalled.release();
    // acq_rel: pairs with arm().
    uint32_t wanted = key(point, cpu);
    if (armed_.compare_exchange_strong(wanted, 0, std::memory_order_acq_rel, std::memory_order_relaxed)) {
      caught.release();
      let_go.acquire();
    }
  }
  bool drop_signal(uint32_t /*cpu*/) noexcept override {
    return signals_.fetch_sub(1, std::memory_order_acq_rel) <= 0; // pairs with allow()
  }

  void arm(VcpuPoint point, uint32_t cpu) { armed_.store(key(point, cpu), std::memory_order_release); }
  void allow(int64_t signals) { signals_.store(signals, std::memory_order_release); }

  std::counting_semaphore<> caught{0};
  std::counting_semaphore<> let_go{0};
  std::counting_semaphore<> signalled{0};

private:
  static uint32_t key(VcpuPoint point, uint32_t cpu) { return cpu << 8 | (static_cast<uint32_t>(point) + 1); }
  std::atomic<uint32_t> armed_{0};
  std::atomic<int64_t> signals_{INT64_MAX};
};

// Catches vCPU 0's thread when it has served this exit, not a kick's, and forgets the signals before that: the next
// one that is told of is of a stop asked for from now on. The caller lets it go.
// CONTEXT: a test's thread; blocks until the guest has such an exit.
inline void catch_at(const Vm& vm, Snare& snare, std::string_view exit) {
  for (bool there = false; !there;) {
    snare.arm(VcpuPoint::kBeforeClear, 0);
    snare.caught.acquire();
    there = vm.vcpu_status(0).last_exit == exit;
    if (!there)
      snare.let_go.release();
  }
  while (snare.signalled.try_acquire()) {
  }
}

} // namespace stopvisor::vmm::testing
