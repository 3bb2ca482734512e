// SPDX-License-Identifier: Apache-2.0
#include "stopper/error.h"

namespace stopvisor::stopper {

const char* to_string(StopErrc code) noexcept {
  switch (code) {
  case StopErrc::kNoSuchCpu:
    return "no such vCPU online";
  case StopErrc::kEmptyMask:
    return "no vCPU was named";
  case StopErrc::kSameCpu:
    return "the two vCPUs are the same";
  case StopErrc::kBusy:
    return "another stop is in progress";
  case StopErrc::kDeadline:
    return "the deadline passed before everybody was held";
  case StopErrc::kWouldDeadlock:
    return "a stop from inside a stop would deadlock";
  case StopErrc::kWorkInUse:
    return "the work is still queued";
  case StopErrc::kCallbackThrew:
    return "the callback threw an exception";
  case StopErrc::kEnded:
    return "the virtual machine has ended";
  }
  return "unknown stop error";
}

} // namespace stopvisor::stopper
