// SPDX-License-Identifier: Apache-2.0
// A participant's thread as those see it who kick it: its id, and its priority, which a stop may lift.
//
// A thread that was kicked may have to wait for a processor before it can come; lifted, it is the first to get one.
// It lowers itself when it goes back to its own work: with a lifted priority, a guest that spins, or a device that
// is kept busy, would keep the processor from those who are still to come.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>

#include "stopper/kick.h"

namespace stopvisor::vmm {

class ThreadPriority {
public:
  // The calling thread is the one from here on / no longer. CONTEXT: the thread itself, each once.
  void adopt_this_thread() noexcept;
  void leave() noexcept;

  // 0: not running. CONTEXT: any thread.
  [[nodiscard]] pid_t thread_id() const noexcept { return tid_.load(std::memory_order_acquire); } // U2

  // It has something to do for a stop: it may be lifted. CONTEXT: any thread.
  void note_urgent() noexcept;
  // Makes it the first to get a processor, until settle() or restore() (SCHED_FIFO; needs CAP_SYS_NICE or
  // RLIMIT_RTPRIO). CONTEXT: any thread, does not block.
  [[nodiscard]] stopper::Kick::Lift lift() noexcept;
  void restore() noexcept; // to what it was when it was adopted
  // Before its own work: from here on nobody lifts it until it is noted urgent again. CONTEXT: the thread itself.
  void settle() noexcept;

private:
  // At its own work or about to be; kicked since; kicked and lifted.
  enum Urgency : uint32_t { kIdle, kKicked, kLifted };
  void lower(pid_t tid) const noexcept;

  std::atomic<pid_t> tid_{0};
  int policy_ = 0; // its scheduling at the start; published by tid_
  std::atomic<uint32_t> urgency_{kIdle};
};

} // namespace stopvisor::vmm
