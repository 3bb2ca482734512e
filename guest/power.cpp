// SPDX-License-Identifier: Apache-2.0
// The power device, and what stands in for it under other VMMs.
#include "guest/power.h"

#include "guest/kernel_call.h"
#include "guest/port.h"
#include "guest/probe_abi.h"

namespace stopvisor::probe {
namespace {

constexpr uint16_t kDebugExitPort = 0x501; // QEMU ends with status 2 * value + 1
constexpr uint32_t kAbsent = 0xffff'ffff;

[[noreturn]] void end(uint32_t command, uint8_t debug_exit_value) {
  if (in32(kPowerPort) != kAbsent) {
    out32(kPowerPort, command);
  } else {
    out8(kDebugExitPort, debug_exit_value);
    kernel_call(KernelCall::kTripleFault);
  }
  for (;;)
    idle(); // the VMM is ending us
}

} // namespace

void power_off() {
  end(kPowerOff, 0);
}

void power_crash() {
  end(kPowerCrash, 1);
}

bool take_power_button() {
  const uint32_t status = in32(kPowerPort);
  if (status == kAbsent || (status & kPowerStatusButton) == 0)
    return false;
  out32(kPowerPort, kPowerButtonClear);
  return true;
}

} // namespace stopvisor::probe
