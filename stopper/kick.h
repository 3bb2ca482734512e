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
  // CONTEXT: any thread, participants' threads included; no lock of the stopper is held; must not block.
  virtual void kick(CpuId cpu) noexcept = 0;

  // Lifts the thread of participant `cpu` above everybody else's until restore(): it was kicked a while ago and has
  // not come, most likely because it waits for a processor. The kernel has a scheduling class of its own for this.
  // RETURNS: false where the process may not, or there is nothing to lift. CONTEXT: as kick().
  virtual bool lift(CpuId /*cpu*/) noexcept { return false; }
  // Back to what it was. Called once after each lift() that returned true, when the stop is over or about to be.
  virtual void restore(CpuId /*cpu*/) noexcept {}
};

} // namespace stopvisor::stopper
