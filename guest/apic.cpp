// SPDX-License-Identifier: Apache-2.0
// Interrupt controllers. (Intel SDM vol. 3, chapter 10; I/O APIC: Intel 82093AA data sheet)
#include "guest/apic.h"

#include "guest/kernel_call.h"
#include "guest/layout.h"
#include "guest/port.h"
#include "guest/probe_abi.h"

extern "C" {
extern const uint8_t probe_x2apic;
extern uint64_t probe_gdt[];
extern const char probe_trampoline[];
extern const char probe_trampoline_end[];
}

namespace stopvisor::probe {
namespace {

constexpr uint64_t kLocalApicGpa = 0xfee0'0000;
constexpr uint64_t kIoApicGpa = 0xfec0'0000;
constexpr uint64_t kTimerClockHz = 1'000'000'000;

// Registers by their xAPIC offset; in x2APIC mode each is MSR 0x800 + offset / 16.
constexpr uint32_t kSpurious = 0xf0;
constexpr uint32_t kInterruptCommand = 0x300;
constexpr uint32_t kInterruptDestination = 0x310; // in x2APIC mode the upper half of the same register
constexpr uint32_t kTimer = 0x320;
constexpr uint32_t kLint0 = 0x350;
constexpr uint32_t kInitialCount = 0x380;
constexpr uint32_t kCurrentCount = 0x390;
constexpr uint32_t kDivide = 0x3e0;

constexpr uint32_t kMasked = 1u << 16;
constexpr uint32_t kPeriodic = 1u << 17;
constexpr uint32_t kDivideByOne = 0xb;
constexpr uint32_t kFixed = 0x4000; // assert
constexpr uint32_t kInit = 0x4500;
constexpr uint32_t kStartUp = 0x4600 | PROBE_TRAMPOLINE_GPA >> 12;
constexpr uint32_t kAllOthers = 0xc'0000; // instead of a destination
constexpr uint64_t kTaskBusy = uint64_t{2} << 40;

volatile uint32_t& mmio(uint64_t gpa) {
  return *reinterpret_cast<volatile uint32_t*>(gpa);
}

void write(uint32_t offset, uint32_t value) {
  if (probe_x2apic != 0)
    write_msr(0x800 + offset / 16, value);
  else
    mmio(kLocalApicGpa + offset) = value;
}

uint32_t read(uint32_t offset) {
  if (probe_x2apic != 0)
    return static_cast<uint32_t>(read_msr(0x800 + offset / 16));
  return mmio(kLocalApicGpa + offset);
}

void write_io_apic(uint32_t index, uint32_t value) {
  mmio(kIoApicGpa) = index;
  mmio(kIoApicGpa + 0x10) = value;
}

// A trap may come between the two writes of an xAPIC, but no handler sends anything.
void send(uint32_t apic_id, uint32_t what) {
  if (probe_x2apic != 0) {
    write_msr(0x800 + kInterruptCommand / 16, uint64_t{apic_id} << 32 | what);
    return;
  }
  write(kInterruptDestination, apic_id << 24);
  write(kInterruptCommand, what);
}

// Nothing else holds the trampoline's page, but it is this guest's own only while vCPUs start.
void copy_trampoline() {
  const auto* from = reinterpret_cast<const uint64_t*>(probe_trampoline);
  auto* to = reinterpret_cast<volatile uint64_t*>(PROBE_TRAMPOLINE_GPA);
  while (from < reinterpret_cast<const uint64_t*>(probe_trampoline_end))
    *to++ = *from++;
}

void route(uint32_t gsi, uint32_t vector, uint32_t apic_id) {
  write_io_apic(0x10 + 2 * gsi + 1, apic_id << 24);
  write_io_apic(0x10 + 2 * gsi, vector); // edge, active high, fixed, physical
}

} // namespace

void start_local_apic(uint32_t hz) {
  write(kSpurious, 0x100 | PROBE_VECTOR_SPURIOUS);
  write(kLint0, kMasked);
  if (hz == 0)
    return;
  write(kDivide, kDivideByOne);
  write(kTimer, kPeriodic | PROBE_VECTOR_TIMER);
  write(kInitialCount, static_cast<uint32_t>(kTimerClockHz / hz));
}

void stop_timer() {
  write(kTimer, kMasked | PROBE_VECTOR_TIMER);
  write(kInitialCount, 0);
}

void start_other_cpus() {
  copy_trampoline();
  write(kInterruptCommand, kAllOthers | kInit);
  // No delay: a VMM queues INIT and start-up in order. The second start-up is for one that lost the first.
  write(kInterruptCommand, kAllOthers | kStartUp);
  write(kInterruptCommand, kAllOthers | kStartUp);
}

void start_cpu(uint32_t apic_id) {
  copy_trampoline();
  // LTR refuses a task state that is marked busy, and LTR marked it when this vCPU came up last.
  probe_gdt[(PROBE_TSS_SELECTOR + 16 * apic_id) / sizeof(uint64_t)] &= ~kTaskBusy;
  send(apic_id, kInit);
  send(apic_id, kStartUp);
}

void interrupt_cpu(uint32_t apic_id) {
  send(apic_id, kFixed | PROBE_VECTOR_WAKE);
}

void route_interrupts(uint32_t apic_id, bool cpu_device) {
  // First: a local APIC that is disabled drops what comes, and nobody would look again.
  write(kSpurious, 0x100 | PROBE_VECTOR_SPURIOUS);
  out8(0x21, 0xff); // both 8259s masked
  out8(0xa1, 0xff);
  route(kPowerGsi, PROBE_VECTOR_BUTTON, apic_id);
  if (cpu_device)
    route(kCpuGsi, PROBE_VECTOR_HOTPLUG, apic_id);
}

uint64_t measure_tsc_hz() {
  constexpr uint32_t kNanoseconds = 2'000'000;
  write(kSpurious, 0x100 | PROBE_VECTOR_SPURIOUS);
  write(kDivide, kDivideByOne);
  write(kTimer, kMasked | PROBE_VECTOR_TIMER);
  write(kInitialCount, ~0u);
  const uint32_t count_before = read(kCurrentCount);
  const uint64_t before = read_tsc();
  uint32_t count = count_before;
  uint64_t now = before;
  for (uint32_t i = 0; i < 100'000 && count_before - count < kNanoseconds; ++i) {
    count = read(kCurrentCount);
    now = read_tsc();
  }
  write(kInitialCount, 0);
  const uint32_t counted = count_before - count;
  return counted < kNanoseconds ? 0 : (now - before) * 1000 / (counted / 1000) * 1000;
}

} // namespace stopvisor::probe
