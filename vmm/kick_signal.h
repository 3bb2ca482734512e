// SPDX-License-Identifier: Apache-2.0
// The signal that brings a vCPU thread out of KVM_RUN.
//
// The handler sets immediate_exit on the run page of the very thread it runs on. Nobody else sets that byte:
// a write from another thread could be overtaken by the vCPU thread's own clearing of it, which is how kicks
// were lost elsewhere (see docs/explanation/stop-protocol.md, "No lost kick"). Under a stop others may clear it:
// the thread does so itself afterwards, and looks for work then.
#pragma once

#include <linux/kvm.h>
#include <signal.h>
#include <sys/types.h>

#include <array>
#include <cstdint>

namespace stopvisor::vmm {

// Installs the handler, once per process, and blocks the signal for the calling thread and those it makes: only
// vCPU threads take it. CONTEXT: before the first vCPU thread is made, best in main() before any thread is.
void prepare_kick_signal() noexcept;

// Makes the calling thread one that is kicked: from now on the signal sets run->immediate_exit. Undone with null,
// before the run page is unmapped.
void accept_kicks(kvm_run* run) noexcept;

// Sends the signal to thread `tid` of this process. A thread that has ended is no harm, and neither is one that
// has taken over its number: it blocks the signal, or it is a vCPU thread and looks at its queue once for nothing.
// CONTEXT: any thread, signal handlers included; does not block.
void send_kick(pid_t tid) noexcept;

// For a scope the calling thread has a kick pending that it does not take, and no other one either. A KVM_RUN that
// lets it in comes back at the guest's door. CONTEXT: any thread.
class KickAtTheDoor {
public:
  // What KVM_SET_SIGNAL_MASK takes: a length, and the set (KVM API, 4.17).
  using Mask = std::array<uint32_t, 3>;

  KickAtTheDoor() noexcept;
  ~KickAtTheDoor(); // takes as many kicks as it has sent, one: those of others stay pending
  KickAtTheDoor(const KickAtTheDoor&) = delete;
  KickAtTheDoor& operator=(const KickAtTheDoor&) = delete;

  [[nodiscard]] int error() const noexcept { return error_; } // 0, or why none is pending: an errno value
  [[nodiscard]] static Mask others() noexcept;                // all signals but it

private:
  sigset_t before_{};
  int error_ = 0;
};

} // namespace stopvisor::vmm
