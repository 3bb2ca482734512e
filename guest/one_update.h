// SPDX-License-Identifier: Apache-2.0
// Judges what a pass over several words saw: one value, an atomic update that fell into the pass, or a torn one.
//
// A stop may well fall between two loads of a pass: a held vCPU is not at a safe point. Such a pass sees the
// old value for a while and then the new one, without the update having been torn. But it never sees the old
// value *again*. A torn update does show that: passes read the words in an order that jumps about, and the
// first word once more at the end. The one condition on the host: an update never brings a former value back
// at once (counting up is best).
#pragma once

#include <stdint.h>

namespace stopvisor::probe {

enum class Seen { kOneValue, kAtomicUpdate, kTornUpdate };

// `values` as one pass read them, in that order. Pure: it can be compiled and tested on the host.
template <uint32_t count>
Seen judge(const uint64_t (&values)[count]) {
  uint64_t difference = 0;
  for (uint32_t i = 1; i < count; ++i)
    difference |= values[i] ^ values[0];
  if (difference == 0)
    return Seen::kOneValue;
  bool changed = false;
  for (uint32_t i = 1; i < count; ++i) {
    if (values[i] != values[0])
      changed = true;
    else if (changed)
      return Seen::kTornUpdate;
  }
  return Seen::kAtomicUpdate;
}

} // namespace stopvisor::probe
