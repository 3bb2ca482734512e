// SPDX-License-Identifier: Apache-2.0
// The stopper over std::atomic and futexes: what the VMM links against.
#pragma once

#include "stopper/futex_platform.h"
#include "stopper/stop_machine.h"
#include "stopper/stop_service.h"

namespace stopvisor::stopper {

extern template class BasicStopMachine<FutexPlatform>;
extern template class BasicStopService<FutexPlatform>;

using StopMachine = BasicStopMachine<FutexPlatform>;
using StopService = BasicStopService<FutexPlatform>;
using Stop = BasicStop<FutexPlatform>;
using Work = BasicWork<FutexPlatform>;

} // namespace stopvisor::stopper
