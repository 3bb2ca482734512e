// SPDX-License-Identifier: Apache-2.0
// Turns through the scenarios; between two slices it looks at what the host, or the power button, wants.
#include "guest/loop.h"

#include "guest/coming_and_going.h"
#include "guest/kernel_call.h"
#include "guest/power.h"
#include "guest/scenarios.h"
#include "guest/serial.h"

namespace stopvisor::probe {
namespace {

constexpr uint32_t kScenarioCount = 6;
using Slice = void (*)(SliceState&);

Slice slice_of(uint32_t bit) {
  switch (bit) {
  case 0:
    return gap_slice;
  case 1:
    return ledger_slice;
  case 2:
    return code_slice;
  case 3:
    return dirty_slice;
  case 4:
    return io_slice;
  default:
    return idle_slice;
  }
}

void start_epoch(SliceState& state, uint64_t epoch) {
  CpuResults& own = *state.results;
  own.gap_max_ticks = 0;
  own.gap_reads = 0;
  for (uint32_t bucket = 0; bucket < kGapBuckets; ++bucket)
    own.gap_histogram[bucket] = 0;
  own.ledger_reads = own.ledger_torn = own.ledger_last = own.ledger_spanned = 0;
  own.code_calls = own.code_torn = own.code_last = own.code_spanned = 0;
  own.dirty_pages = 0;
  state.gap_last_tsc = 0;
  *const_cast<volatile uint64_t*>(&own.epoch) = epoch; // last: who sees it finds the counters zeroed
}

void print_banner(const Options& options) {
  constexpr const char* kNames[kScenarioCount] = {" gap", " ledger", " code", " dirty", " io", " idle"};
  print("stopvisor probe: ");
  print_decimal(results().cpus_present);
  print(" vCPUs, ");
  print_decimal(results().memory_bytes >> 20);
  print(" MiB, scenarios");
  for (uint32_t bit = 0; bit < kScenarioCount; ++bit) {
    if ((options.scenarios >> bit & 1) != 0)
      print(kNames[bit]);
  }
  print(results().doorbell_present != 0 ? "\n" : ", no doorbell\n");
}

// Hears the CPU device: the boot processor for all, the others whether they are to leave. The boot processor also
// says once that everybody runs, and hears the power button. RETURNS whether that took time.
bool attend(CpuBlock& block) {
  if (block.boots == 0) {
    if (block.wake == 0)
      return false;
    leave_if_asked(block);
    return true;
  }
  if (block.hotplug != 0) {
    block.hotplug = 0;
    follow_cpu_device();
    return true;
  }
  if (block.announced == 0 &&
      __atomic_load_n(&results().cpus_running, __ATOMIC_RELAXED) >= results().cpus_present) {
    block.announced = 1;
    tell_changes(block, true);
    print("stopvisor probe: running\n");
    return true;
  }
  if (block.wake != 0) {
    tell_changes(block, block.announced == 0);
    return true;
  }
  if (block.button != 0) {
    block.button = 0;
    if (take_power_button()) {
      print("stopvisor probe: power button\n");
      set_phase(*block.results, CpuPhase::kPoweredOff);
      power_off();
    }
    return true;
  }
  return false;
}

[[noreturn]] void finish(CpuBlock& block) {
  attend(block);
  set_phase(*block.results, CpuPhase::kPoweredOff);
  for (;;) {
    if (everybody_finished()) // now, or since others have left
      power_off();
    idle();
    attend(block);
  }
}

} // namespace

void run_slices(CpuBlock& block, const Options& options, const Memory& memory) {
  CpuResults& own = *block.results;
  SliceState state{.results = &own, .index = block.index, .memory = memory};
  const volatile Control& control = results().control;
  uint32_t bit = 0;
  prepare_mailbox(state);
  set_phase(own, CpuPhase::kRunning);
  come_up(block);
  if (block.boots != 0)
    print_banner(options); // now that it delays nobody
  for (;;) {
    if (attend(block))
      state.gap_last_tsc = 0;
    if (const uint64_t epoch = control.epoch; epoch != own.epoch)
      start_epoch(state, epoch);
    const uint32_t chosen = control.scenarios & kAllScenarios;
    if (chosen == 0) {
      idle();
      continue;
    }
    while ((chosen >> bit & 1) == 0)
      bit = (bit + 1) % kScenarioCount;
    if (chosen != kGap)
      state.gap_last_tsc = 0; // other slices are no gap
    slice_of(bit)(state);
    bit = (bit + 1) % kScenarioCount;
    ++own.slices;
    if (options.exit_after_slices != 0 && own.slices >= options.exit_after_slices)
      finish(block);
  }
}

} // namespace stopvisor::probe
