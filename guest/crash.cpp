// SPDX-License-Identifier: Apache-2.0
// Where unexpected exceptions end: results page, one line on the serial port, power device.
#include "guest/crash.h"

#include "guest/power.h"
#include "guest/serial.h"

namespace stopvisor::probe {

void crash(const CpuBlock& block, const Crash& what) {
  results().crash = {block.index, what.vector, what.error_code, what.rip, what.cr2};
  print("stopvisor probe: CRASH vCPU ");
  print_decimal(block.index);
  print(" vector ");
  print_hex(what.vector);
  print(" error ");
  print_hex(what.error_code);
  print(" rip ");
  print_hex(what.rip);
  print(" cr2 ");
  print_hex(what.cr2);
  print("\n");
  power_crash();
}

} // namespace stopvisor::probe

// What the exception stubs of traps.S push, and the CPU before them.
struct ExceptionFrame {
  uint64_t vector;
  uint64_t error_code;
  uint64_t rip;
};

// CONTEXT: CPL 0, interrupts off, from traps.S.
extern "C" [[noreturn]] void probe_crash(const ExceptionFrame* frame, uint64_t cr2,
                                         const stopvisor::probe::CpuBlock* block);

void probe_crash(const ExceptionFrame* frame, uint64_t cr2, const stopvisor::probe::CpuBlock* block) {
  stopvisor::probe::crash(*block, {static_cast<uint32_t>(frame->vector), frame->error_code, frame->rip, cr2});
}
