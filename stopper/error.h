// SPDX-License-Identifier: Apache-2.0
// Why a stop did not happen.
#pragma once

#include "stopper/cpu_mask.h"

namespace stopvisor::stopper {

enum class StopErrc {
  kNoSuchCpu,     // -ENOENT: not a possible vCPU, or every vCPU asked for is offline
  kEmptyMask,     // no vCPU was asked for
  kSameCpu,       // stop_two_cpus() with the same vCPU twice
  kBusy,          // -EAGAIN: try_stop_cpus() while another wide stop is going on
  kDeadline,      // not everybody was held in time; everybody was let go and nothing was run
  kWouldDeadlock, // called from a callback, a participant's thread, or a thread that holds a stop
  kWorkInUse,     // stop_one_cpu_nowait() with a work that is still queued
  kCallbackThrew, // the callback left by an exception; the machinery is unharmed
  kEnded,         // the machinery was closed
};

struct StopError {
  StopErrc code;
  // For kDeadline: the participants that had not come. Empty where the time was lost waiting for another stop.
  CpuMask stragglers{};
};

// One clause for a message, without a full stop. Never null.
[[nodiscard]] const char* to_string(StopErrc code) noexcept;

} // namespace stopvisor::stopper
