// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/target.h"

#include <array>
#include <span>

namespace stopvisor::stress {
namespace {

// How often a vCPU that should be at rest is looked at: long enough for one that is not to do something.
constexpr int kLooks = 20;

} // namespace

Target::Alone::Alone(Target& target) : target_(target) {
  if (target.inside_.exchange(true, std::memory_order_acquire)) // S1, pairs with ~Alone()
    target.journal_.fail("two callbacks had the machine for themselves at the same time");
}

bool Target::ready() const noexcept {
  return vm_.resets() >= resets_needed_ && probe_.is_up();
}

bool Target::settled() const {
  uint32_t online = 0;
  for (uint32_t cpu = 0; cpu < vm_.cpu_count(); ++cpu)
    online += vm_.vcpu_status(cpu).presence == vmm::VcpuPresence::kOnline ? 1 : 0;
  return ready() && probe_.cpus_present() == online && probe_.cpus_running() == online;
}

void Target::update_ledger() noexcept {
  if (ready())
    probe_.write_ledger(++ledger_);
}

void Target::update_code() noexcept {
  if (ready())
    probe_.rewrite_code(++code_);
}

void Target::plant_reset() noexcept {
  if (!ready())
    return;
  // mov $0xfe, %al; out %al, $0x64; ret. Several vCPUs may get there.
  constexpr std::array<uint8_t, 5> kPulse{0xb0, 0xfe, 0xe6, 0x64, 0xc3};
  if (!vm_.memory().write(vmm::Gpa{probe::code_site_gpa(1)}, std::as_bytes(std::span(kPulse))))
    journal_.fail("a code site lies outside guest memory");
  resets_needed_ = vm_.resets() + 1;
}

uint64_t Target::work_done(uint32_t cpu) const noexcept {
  const probe::CpuResults now = probe_.cpu(cpu);
  return now.slices + now.gap_reads + now.ledger_reads + now.code_calls + now.dirty_pages + now.io_port_writes +
         now.io_port_reads + now.io_mmio_writes + now.io_mmio_reads + now.timer_interrupts + now.idle_wakeups +
         now.mail_rung;
}

void Target::expect_at_rest(const stopper::CpuMask& mask, const char* during) {
  mask.for_each([&](uint32_t cpu) {
    const uint64_t before = work_done(cpu);
    for (int look = 0; look < kLooks; ++look)
      if (work_done(cpu) != before) {
        journal_.fail(std::string("vCPU ") + std::to_string(cpu) + " works during " + during);
        return;
      }
  });
}

void Target::inspect() {
  const uint32_t cpus = vm_.cpu_count();
  for (uint32_t cpu = 0; cpu < cpus; ++cpu)
    inspect_cpu(cpu);
  expect_at_rest(stopper::CpuMask::first_n(cpus), "a full stop");
  for (uint32_t cpu = 0; cpu < cpus; ++cpu)
    if (!probe_.mailbox_is_level(cpu))
      journal_.fail("the mailbox of vCPU " + std::to_string(cpu) + " is half written under a stop");
}

void Target::inspect_cpu(uint32_t cpu) {
  const probe::CpuResults guest = probe_.cpu(cpu);
  const vmm::DoorbellCounts device = vm_.doorbell_counts(cpu);
  const auto expect = [&](bool good, const char* what, uint64_t one, uint64_t other) {
    if (!good)
      journal_.fail("vCPU " + std::to_string(cpu) + ": " + what + " (" + std::to_string(one) + ", " +
                    std::to_string(other) + ")");
  };
  expect(guest.ledger_torn == 0, "torn ledger", guest.ledger_torn, guest.ledger_reads);
  expect(guest.code_torn == 0, "torn code", guest.code_torn, guest.code_calls);
  expect(guest.ledger_last <= ledger_, "a ledger value nobody wrote", guest.ledger_last, ledger_);
  expect(device.lost == 0 && device.doubled == 0, "accesses lost, doubled", device.lost, device.doubled);
  expect(guest.io_bad == 0, "wrong answers from the device", guest.io_bad, guest.io_port_reads);
  expect(guest.mail_bad == 0, "bad mail", guest.mail_bad, guest.mail_rung);
  expect(guest.mail_rung - guest.mail_seen <= 1, "rung, but not seen", guest.mail_rung, guest.mail_seen);
  // The guest notes an access after it was made. (While it starts after a reset it has not zeroed its results yet,
  // but then the host has.)
  const auto level = [&](uint64_t made, uint64_t noted, const char* what) {
    expect(made - noted <= 1, what, made, noted);
  };
  level(device.port_writes, guest.io_port_writes, "port writes made and noted");
  level(device.port_reads, guest.io_port_reads, "port reads made and noted");
  level(device.mmio_writes, guest.io_mmio_writes, "MMIO writes made and noted");
  level(device.mmio_reads, guest.io_mmio_reads, "MMIO reads made and noted");
}

} // namespace stopvisor::stress
