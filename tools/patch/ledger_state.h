// SPDX-License-Identifier: Apache-2.0
// The ledger as a section of a machine's state: what was patched goes with the memory it was written to.
#pragma once

#include <chrono>
#include <expected>
#include <vector>

#include "tools/patch/ledger.h"
#include "vmm/error.h"
#include "vmm/state/section.h"

namespace stopvisor::patch {

struct LedgerState {
  std::vector<Record> applied;
  std::vector<Event> history;
};

// CONTEXT: any thread. `now`: a patch that waits to be confirmed does so for as long as it had left.
[[nodiscard]] vmm::StateSection save_ledger(const std::vector<Ledger::Entry>& applied,
                                            const std::vector<Event>& history, SteadyTime now);
// Reads it as hostile input: whatever is taken could have been saved, and reverting it writes only what the
// manifest of the patch says, where it was. RETURNS: kRefused, with what is wrong.
[[nodiscard]] std::expected<LedgerState, vmm::Error> restore_ledger(const vmm::StateSection& section,
                                                                    SteadyTime now);

} // namespace stopvisor::patch
