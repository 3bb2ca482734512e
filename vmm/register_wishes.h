// SPDX-License-Identifier: Apache-2.0
// Who will want the vCPUs' registers under a stop to come.
//
// While anybody wishes, each vCPU thread sees to it that its vCPU's registers are noted before it acknowledges a
// stop (KvmVcpu::enter(), note_registers()): all of them at once, and as they leave the guest. Else whoever holds
// the guest asks KVM for one vCPU after the other, and the guest is held for as long. Nothing rests on it: what is
// not noted is asked for.
#pragma once

#include <atomic>
#include <cstdint>

namespace stopvisor::vmm {

class RegisterWishes {
public:
  // CONTEXT: any thread, does not block. A stop that is asked for after add() has the registers of all vCPUs that
  // are online.
  void add() noexcept { count_.fetch_add(1, std::memory_order_relaxed); } // the stop's own ordering publishes it
  void remove() noexcept { count_.fetch_sub(1, std::memory_order_relaxed); }
  [[nodiscard]] bool any() const noexcept { return count_.load(std::memory_order_relaxed) != 0; }

private:
  std::atomic<uint32_t> count_{0};
};

} // namespace stopvisor::vmm
