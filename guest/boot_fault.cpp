// SPDX-License-Identifier: Apache-2.0
// Commits the fault that the command line asks for.
#include "guest/boot_fault.h"

#include "guest/crash.h"
#include "guest/kernel_call.h"
#include "guest/serial.h"

namespace stopvisor::probe {

void commit_boot_fault(CpuBlock& block, BootFault fault) {
  switch (fault) {
  case BootFault::kNone:
    return;
  case BootFault::kTriple:
    kernel_call(KernelCall::kTripleFault);
    return;
  case BootFault::kUndefined:
    asm volatile("ud2");
    return;
  case BootFault::kCrash:
    crash(block, {kCrashAsked, 0, reinterpret_cast<uint64_t>(&commit_boot_fault), 0});
  case BootFault::kEmulation:
    kernel_call(KernelCall::kUnemulatable);
    // This CPU runs CPL 0 natively. No KVM can fetch instructions from a device.
    reinterpret_cast<void (*)()>(kDoorbellMmioGpa)();
    print("stopvisor probe: boot_fault=emulation: nothing happened\n");
    return;
  }
}

} // namespace stopvisor::probe
