// SPDX-License-Identifier: Apache-2.0
// The first of the stopper's two interfaces to the world: how a participant is made to look at its queue.
#pragma once

#include "stopper/cpu_mask.h"

namespace stopvisor::stopper {

class Kick {
public:
  virtual ~Kick() = default;
  // Makes the thread of participant `cpu` leave whatever it does (KVM_RUN, a wait for requests) and call
  // StopMachine::run_works(). The work is queued before kick() is called: that order is what makes a lost
  // kick impossible (see docs/explanation/stop-protocol.md, "No lost kick"). A kick to a thread that has
  // nothing queued any more, or that has ended, does no harm.
  // CONTEXT: any thread, participants' threads included. No stopper's lock is held, but the facility's and the
  // hotplug lock's read side are, and the service's may be: must not block, nor call the stopper.
  virtual void kick(CpuId cpu) noexcept = 0;

  enum class Lift {
    kLifted,    // restore() is owed
    kNotNeeded, // the thread is back in the guest, or was that urgent already
    kRefused,   // the process may not
  };
  // Lifts the thread of participant `cpu` above everybody else's until restore(): it was kicked a while ago and has
  // not come, or not left, most likely because it waits for a processor. The kernel has a scheduling class of its
  // own for this. The thread lowers itself before it goes back to the guest: guest code that spins with a lifted
  // priority would keep the processor from those who are still to come. CONTEXT: as kick().
  virtual Lift lift(CpuId /*cpu*/) noexcept { return Lift::kRefused; }
  // Back to what it was, where the thread has not seen to it itself. Called after each lift() that said kLifted.
  virtual void restore(CpuId /*cpu*/) noexcept {}
};

} // namespace stopvisor::stopper
