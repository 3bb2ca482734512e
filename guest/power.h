// SPDX-License-Identifier: Apache-2.0
// Ends of the guest: power-off, crash, triple fault; and the power button.
#pragma once

#include <stdint.h>

namespace stopvisor::probe {

// Powers off through the power device; where there is none, through QEMU's isa-debug-exit at its default
// port; where there is neither, by a triple fault. CONTEXT: any vCPU, CPL 0 or 3.
[[noreturn]] void power_off();

// Tells the power device that the guest gave up; the caller has filled Results::crash. The same fall-backs.
[[noreturn]] void power_crash();

// RETURNS whether the power button was pressed; acknowledges it. CONTEXT: vCPU 0.
bool take_power_button();

} // namespace stopvisor::probe
