// SPDX-License-Identifier: Apache-2.0
// Coming and going, by one byte of state for each vCPU that it and the boot processor exchange.
#include "guest/coming_and_going.h"

#include "guest/apic.h"
#include "guest/kernel_call.h"
#include "guest/port.h"
#include "guest/serial.h"

namespace stopvisor::probe {
namespace {

constexpr uint8_t kAbsent = 0;
constexpr uint8_t kCalled = 1;
constexpr uint8_t kUp = 2;
constexpr uint8_t kGoing = 3; // about to write kCpuGone, or has written it
constexpr uint8_t kStateBits = 3;
constexpr uint8_t kDismissed = 4; // beside called or up: it is to leave

struct Cpu {
  uint8_t state; // atomic
  uint8_t rank;  // the rest is the boot processor's
  bool present;  // as its register said
  bool wanted;
  bool told_up;
};

Cpu g_cpus[kMaxCpus];
uint32_t g_possible; // 0: there is no CPU device
CpuBlock* g_boot;
bool g_timer;

uint8_t state_of(uint32_t cpu) {
  return __atomic_load_n(&g_cpus[cpu].state, __ATOMIC_SEQ_CST);
}

bool exchange_state(uint32_t cpu, uint8_t& expected, uint8_t desired) {
  return __atomic_compare_exchange_n(&g_cpus[cpu].state, &expected, desired, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
}

void leave_note(CpuBlock& block) {
  __atomic_store_n(&block.wake, uint8_t{1}, __ATOMIC_RELEASE);
}

// Locked: what the note is about is looked at after it was taken away.
void take_note(CpuBlock& block) {
  __atomic_exchange_n(&block.wake, uint8_t{0}, __ATOMIC_SEQ_CST);
}

void tell_boot_processor() {
  leave_note(*g_boot);
  if (!g_timer)
    interrupt_cpu(g_boot->index);
}

constexpr uint16_t register_of(uint32_t cpu) {
  return static_cast<uint16_t>(kCpuPortBase + 4 * cpu);
}

void read_register(uint32_t cpu) {
  constexpr uint32_t kAbsentDevice = ~0u;
  const uint32_t bits = in32(register_of(cpu));
  g_cpus[cpu].present = bits != kAbsentDevice && (bits & kCpuPresent) != 0;
  g_cpus[cpu].wanted = g_cpus[cpu].present && (bits & kCpuWanted) != 0;
}

// One that is going may not have written kCpuGone yet. The host has not taken it out then, so INIT reaches it, and
// what it still writes to a register that says wanted means nothing.
void welcome(uint32_t cpu) {
  const uint8_t before = __atomic_fetch_and(&g_cpus[cpu].state, kStateBits, __ATOMIC_SEQ_CST) & kStateBits;
  if (before != kAbsent && before != kGoing)
    return; // at work or on its way; if it was about to leave, it now stays
  __atomic_store_n(&g_cpus[cpu].state, kCalled, __ATOMIC_SEQ_CST);
  start_cpu(cpu);
}

// The host waits for kCpuGone whenever it has asked, also for one that this guest never started, or that wrote it
// while it was wanted for a moment, when it meant nothing: then it is said in its place.
void dismiss(uint32_t cpu) {
  uint8_t state = state_of(cpu);
  while (state == kCalled || state == kUp) {
    if (exchange_state(cpu, state, state | kDismissed)) {
      leave_note(block_of(cpu));
      interrupt_cpu(cpu);
      return;
    }
  }
  if (g_cpus[cpu].present && (state == kAbsent || state == kGoing))
    out32(register_of(cpu), kCpuGone);
}

// Where nobody told the number of vCPUs reliably, more may come than were expected.
void expect_at_least(uint32_t running) {
  uint32_t present = __atomic_load_n(&results().cpus_present, __ATOMIC_RELAXED);
  while (present < running && !__atomic_compare_exchange_n(&results().cpus_present, &present, running, false,
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

} // namespace

bool find_cpu_device(CpuBlock& boot, bool timer) {
  g_boot = &boot;
  g_timer = timer;
  g_cpus[boot.index].state = kCalled;
  for (uint32_t cpu = 0; cpu < kMaxCpus; ++cpu)
    g_cpus[cpu].rank = static_cast<uint8_t>(cpu);
  if (in32(kCpuSignaturePort) != kCpuSignature)
    return false;
  const uint32_t possible = in32(kCpuPossiblePort);
  g_possible = possible < kMaxCpus ? possible : kMaxCpus;
  return true;
}

uint32_t count_wanted() {
  uint32_t wanted = 0;
  for (uint32_t cpu = 0; cpu < g_possible; ++cpu) {
    read_register(cpu);
    if (cpu == g_boot->index)
      g_cpus[cpu].wanted = true; // it stays, whatever it says
    if (g_cpus[cpu].wanted)
      g_cpus[cpu].rank = static_cast<uint8_t>(wanted++);
  }
  return wanted != 0 ? wanted : 1;
}

void start_wanted() {
  bool all = true;
  for (uint32_t cpu = 0; cpu < g_possible; ++cpu) {
    all &= g_cpus[cpu].wanted;
    if (!g_cpus[cpu].wanted)
      dismiss(cpu);
    else if (cpu != g_boot->index)
      __atomic_store_n(&g_cpus[cpu].state, kCalled, __ATOMIC_SEQ_CST);
  }
  if (all) { // one call for all is faster, but it would reach those that are not wanted too
    if (g_possible > 1)
      start_other_cpus();
    return;
  }
  for (uint32_t cpu = 0; cpu < g_possible; ++cpu)
    if (g_cpus[cpu].wanted && cpu != g_boot->index)
      start_cpu(cpu);
}

void follow_cpu_device() {
  const uint32_t wanted = count_wanted();
  // In this order, so that everybody_finished() never counts one that leaves for one that works.
  for (uint32_t cpu = 0; cpu < g_possible; ++cpu)
    if (!g_cpus[cpu].wanted)
      dismiss(cpu);
  __atomic_store_n(&results().cpus_present, wanted, __ATOMIC_SEQ_CST);
  for (uint32_t cpu = 0; cpu < g_possible; ++cpu)
    if (g_cpus[cpu].wanted && cpu != g_boot->index)
      welcome(cpu);
}

void come_up(CpuBlock& block) {
  uint8_t state = state_of(block.index);
  while (!exchange_state(block.index, state, (state & kDismissed) | kUp)) {
  }
  ++block.results->starts;
  const uint32_t running = __atomic_add_fetch(&results().cpus_running, 1, __ATOMIC_RELEASE);
  if (g_possible == 0)
    expect_at_least(running);
  if ((state & kDismissed) != 0)
    leave_note(block); // the note that dismissed it may have come before it claimed its block
  tell_boot_processor();
}

void leave_if_asked(CpuBlock& block) {
  take_note(block);
  uint8_t state = state_of(block.index);
  if (state != (kUp | kDismissed))
    return;
  // All accounts are settled before the step after which it may be called again at any time.
  const CpuPhase phase = phase_of(block.index);
  set_phase(*block.results, CpuPhase::kOffline);
  __atomic_sub_fetch(&results().cpus_running, 1, __ATOMIC_SEQ_CST);
  if (!exchange_state(block.index, state, kGoing)) {
    __atomic_add_fetch(&results().cpus_running, 1, __ATOMIC_SEQ_CST); // wanted again: it stays
    set_phase(*block.results, phase);
    return;
  }
  stop_timer();
  tell_boot_processor();
  write_last(register_of(block.index), kCpuGone);
}

void tell_changes(CpuBlock& block, bool quiet) {
  take_note(block);
  for (uint32_t cpu = 0; cpu < g_possible; ++cpu) {
    const bool up = (state_of(cpu) & kStateBits) == kUp;
    if (up == g_cpus[cpu].told_up)
      continue;
    g_cpus[cpu].told_up = up;
    if (quiet)
      continue;
    print("stopvisor probe: vCPU ");
    print_decimal(cpu);
    print(up ? " started\n" : " gone\n");
  }
}

bool may_work(uint32_t index, uint32_t told) {
  if (g_possible != 0)
    return (state_of(index) & kStateBits) != kAbsent;
  return told == 0 || index < told;
}

uint32_t rank_of(uint32_t index) {
  return __atomic_load_n(&g_cpus[index].rank, __ATOMIC_RELAXED);
}

bool everybody_finished() {
  uint32_t finished = 0;
  for (uint32_t cpu = 0; cpu < kMaxCpus; ++cpu)
    if (state_of(cpu) == kUp && phase_of(cpu) == CpuPhase::kPoweredOff)
      ++finished;
  return finished >= __atomic_load_n(&results().cpus_present, __ATOMIC_SEQ_CST);
}

} // namespace stopvisor::probe
