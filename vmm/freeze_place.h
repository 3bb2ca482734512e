// SPDX-License-Identifier: Apache-2.0
// Where those who throw guest memory away find who has it frozen: one at a time.
#pragma once

#include <mutex>
#include <string>
#include <utility>

#include "vmm/frozen_memory.h"

namespace stopvisor::vmm {

class FreezePlace {
public:
  // RETURNS: false where somebody is in it. CONTEXT, all: any thread; blocks for moments.
  [[nodiscard]] bool enter() noexcept {
    const std::scoped_lock guard(lock_);
    return !std::exchange(taken_, true);
  }
  // Whose memory it is from now on; null: nobody's. CONTEXT: who has entered.
  void hold(FrozenMemory* memory) noexcept {
    const std::scoped_lock guard(lock_);
    memory_ = memory;
  }
  void leave() noexcept {
    const std::scoped_lock guard(lock_);
    memory_ = nullptr;
    taken_ = false;
  }
  // Guest memory is about to go. It is after the return that it may.
  void fail(const std::string& reason) noexcept {
    const std::scoped_lock guard(lock_);
    if (memory_ != nullptr)
      memory_->fail(reason);
  }

private:
  std::mutex lock_; // before FrozenMemory's
  bool taken_ = false;
  FrozenMemory* memory_ = nullptr;
};

} // namespace stopvisor::vmm
