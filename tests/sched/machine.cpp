// SPDX-License-Identifier: Apache-2.0
// The stopper over SchedPlatform, and the guest's memory: all that ThreadSanitizer instruments in this folder.
#include "tests/sched/world.h"

namespace stopvisor::stopper {

template class BasicStopMachine<sched::SchedPlatform>;
template class BasicStopService<sched::SchedPlatform>;

} // namespace stopvisor::stopper

namespace stopvisor::sched {

uint64_t read_guest(const uint64_t& word) noexcept {
  return word;
}
void write_guest(uint64_t& word, uint64_t value) noexcept {
  word = value;
}

} // namespace stopvisor::sched
