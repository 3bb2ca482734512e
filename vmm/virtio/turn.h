// SPDX-License-Identifier: Apache-2.0
// A lock for one who takes it over and over and others who want it now and then: they get the very next turn.
//
// A worker with much to do gives its lock back and takes it again within nanoseconds; a vCPU that waits for a plain
// mutex (to reset the device) might find it taken for as long as there is work.
#pragma once

#include <mutex>

namespace stopvisor::vmm::virtio {

class Turn {
public:
  // CONTEXT: blocks for the present owner's turn, and those of who came before; no stop is waited for.
  void lock() {
    // Whoever waits for `turn_` holds `next_`: the owner, back from its turn, queues up behind it.
    next_.lock();
    turn_.lock();
    next_.unlock();
  }
  void unlock() { turn_.unlock(); }

private:
  std::mutex next_;
  std::mutex turn_;
};

} // namespace stopvisor::vmm::virtio
