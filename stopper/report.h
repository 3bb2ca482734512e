// SPDX-License-Identifier: Apache-2.0
// The stop report: the timeline of one stop, per participant.
//
// All times are nanoseconds of the monotonic clock; 0 where the event did not happen.
#pragma once

#include <cstdint>
#include <vector>

#include "stopper/cpu_mask.h"

namespace stopvisor::stopper {

struct ParticipantReport {
  CpuId cpu = 0;
  bool worker = false;     // a device worker rather than a vCPU
  uint32_t activity = 0;   // what it was doing when it came out, as given to note_out() (KVM's exit reason)
  int64_t kicked_ns = 0;   // none for a worker that was at rest
  int64_t out_ns = 0;      // out of KVM_RUN
  int64_t held_ns = 0;     // acknowledged Prepare (a worker: DisableIrq)
  int64_t ran_ns = 0;      // its callback returned, where it ran one
  int64_t released_ns = 0; // left the stop
  int result = 0;          // its callback's result
  bool lifted = false;     // it was late, and its thread's priority was lifted for this stop
};

enum class StopEnd : uint8_t {
  kNone,      // no stop yet
  kCompleted, // ran and let go
  kAborted,   // let go at the deadline, nothing was run
};

struct StopReport {
  uint64_t sequence = 0; // counts wide stops from 1
  StopEnd end = StopEnd::kNone;
  uint32_t shared = 0;       // callbacks that ran under this stop, where a stop service led it
  bool lift_refused = false; // somebody was late, and the process may not lift priorities
  uint32_t rekicks = 0;      // kicks repeated because nobody came for kRekickInterval
  int64_t requested_ns = 0;  // the stop was asked for, before the wait for other stops
  int64_t begun_ns = 0;      // the facility was ours
  int64_t all_held_ns = 0;   // the state moved to Run
  int64_t exit_ns = 0;       // the state moved to Exit
  int64_t left_ns = 0;       // the last participant left
  CpuMask stragglers{};      // aborted: who had not come
  std::vector<ParticipantReport> participants;

  // The hold as the guest feels it: first participant held to last released. 0 where nobody was held.
  [[nodiscard]] int64_t hold_ns() const noexcept;
};

} // namespace stopvisor::stopper
