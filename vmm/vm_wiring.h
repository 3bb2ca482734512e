// SPDX-License-Identifier: Apache-2.0
// Where the devices sit that no other header places: ports and interrupt lines of this VMM's PC.
#pragma once

#include <cstdint>

namespace stopvisor::vmm {

inline constexpr uint16_t kSerialPort = 0x3f8; // COM1, as PCs have it
inline constexpr uint32_t kSerialGsi = 4;
inline constexpr uint32_t kPowerPortBytes = 4;

} // namespace stopvisor::vmm
