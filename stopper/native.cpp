// SPDX-License-Identifier: Apache-2.0
#include "stopper/native.h"

namespace stopvisor::stopper {

template class BasicStopMachine<FutexPlatform>;
template class BasicStopService<FutexPlatform>;

} // namespace stopvisor::stopper
