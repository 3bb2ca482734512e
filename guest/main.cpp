// SPDX-License-Identifier: Apache-2.0
// Start-up at CPL 3: vCPU 0 prepares everything and starts the others; then each enters the slice loop.
#include "guest/apic.h"
#include "guest/boot_fault.h"
#include "guest/coming_and_going.h"
#include "guest/command_line.h"
#include "guest/cpu_block.h"
#include "guest/crash.h"
#include "guest/gates.h"
#include "guest/kernel_call.h"
#include "guest/loop.h"
#include "guest/machine.h"
#include "guest/port.h"
#include "guest/scenarios.h"
#include "guest/serial.h"
#include "guest/start_info.h"

#include <string.h>

namespace stopvisor::probe {
namespace {

// Written by vCPU 0 before it starts the others, constant afterwards.
Options g_options;
Memory g_memory;

void warn_unknown(const char* word, uint32_t length) {
  print("stopvisor probe: unknown word on the command line ignored: ");
  print(word, length);
  print("\n");
}

uint32_t index_of(const CpuBlock* block) {
  return static_cast<uint32_t>((reinterpret_cast<uint64_t>(block) - PROBE_CPU_BLOCKS_GPA) / PROBE_CPU_BLOCK_BYTES);
}

void claim_block(CpuBlock& block) {
  block.index = index_of(&block);
  block.results = reinterpret_cast<CpuResults*>(cpu_results_gpa(block.index));
  block.button = 0;
  block.hotplug = 0;
  block.wake = 0;
  block.no_note = 0;
  block.boots = 0;
  block.announced = 0;
  block.results->apic_id = block.index;
  block.results->phase = static_cast<uint32_t>(CpuPhase::kStarting);
}

void fill_results() {
  Results& page = results();
  memset(&page, 0, sizeof page); // RAM of a VM that was reset is not zero
  page.abi_version = kAbiVersion;
  page.doorbell_present = in32(kDoorbellSignaturePort) == kDoorbellSignature ? 1 : 0;
  page.memory_bytes = g_memory.total_bytes;
  const uint64_t capacity = dirty_capacity(g_memory);
  page.control.scenarios = g_options.scenarios;
  page.control.dirty_bytes = g_options.dirty_bytes < capacity ? g_options.dirty_bytes : capacity;
  page.control.dirty_rate = g_options.dirty_rate;
}

[[noreturn]] void enter_loop(CpuBlock& block) {
  start_local_apic(g_options.timer_hz);
  kernel_call(KernelCall::kEnableInterrupts);
  run_slices(block, g_options, g_memory);
}

} // namespace
} // namespace stopvisor::probe

// CONTEXT: the entry points at CPL 3, called by boot.S with interrupts off.
extern "C" [[noreturn]] void probe_boot_cpu(stopvisor::probe::CpuBlock* block,
                                            const stopvisor::probe::StartInfo* info);
extern "C" [[noreturn]] void probe_application_cpu(stopvisor::probe::CpuBlock* block);

void probe_boot_cpu(stopvisor::probe::CpuBlock* block, const stopvisor::probe::StartInfo* info) {
  using namespace stopvisor::probe;
  static char text[2048];
  fill_gates();
  serial_init();
  read_command_line(info, text, sizeof text);
  g_options = parse_command_line(text, warn_unknown);
  g_memory = read_memory_map(info);
  fill_results();
  claim_block(*block);
  map_high_memory(g_memory);
  write_code_sites();
  commit_boot_fault(*block, g_options.boot_fault);
  const bool cpu_device = find_cpu_device(*block, g_options.timer_hz != 0);
  route_interrupts(block->index, cpu_device);
  if (cpu_device)
    results().cpus_present = count_wanted();
  else
    results().cpus_present = g_options.cpus != 0 ? g_options.cpus : cpus_told();
  results().tsc_hz = tsc_hz_told();
  if (results().tsc_hz == 0)
    results().tsc_hz = measure_tsc_hz();
  block->boots = 1;
  block->button = 1; // look once: it may have been pressed before it was routed
  *const_cast<volatile uint64_t*>(&results().magic) = kMagic;
  if (cpu_device) // last: they may outnumber the cores and keep this one waiting
    start_wanted();
  else if (g_options.cpus != 1)
    start_other_cpus();
  enter_loop(*block);
}

void probe_application_cpu(stopvisor::probe::CpuBlock* block) {
  using namespace stopvisor::probe;
  if (!may_work(index_of(block), g_options.cpus))
    kernel_call(KernelCall::kPark);
  claim_block(*block);
  enter_loop(*block);
}
