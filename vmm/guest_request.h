// SPDX-License-Identifier: Apache-2.0
// What a guest asks of its machine as a whole through a device: to be switched off, reset, or given up.
//
// A device is called in the middle of an instruction. It only passes the request on; the vCPU thread acts on it
// once the exit has been served.
#pragma once

#include <cstdint>
#include <functional>

namespace stopvisor::vmm {

enum class GuestRequest : uint8_t { kNone, kPowerOff, kReset, kCrash };

// CONTEXT: called on the thread of the vCPU whose access it was; must not block.
using GuestRequestSink = std::function<void(GuestRequest)>;

} // namespace stopvisor::vmm
