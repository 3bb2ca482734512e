// SPDX-License-Identifier: Apache-2.0
// What a device gives to a snapshot, and takes from one.
#pragma once

#include "vmm/state/encoding.h"

namespace stopvisor::vmm {

class StatefulDevice {
public:
  virtual ~StatefulDevice() = default;
  // Writes all that a guest could ever notice of the device. Nothing of the host's goes in: no time, no descriptor,
  // no counter of ours. CONTEXT: under a stop; workers are at rest.
  virtual void save_state(StateWriter& to) const = 0;
  // Takes it. What stands there may be anything: a value that save_state() does not write is refused
  // (StateReader::refuse()). Interrupt lines are not touched: what they led to is in the interrupt controllers' own
  // state. CONTEXT: before a vCPU and a worker run, on a device as it was made, guest memory being in place.
  virtual void restore_state(StateReader& from) = 0;
};

} // namespace stopvisor::vmm
