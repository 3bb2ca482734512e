// SPDX-License-Identifier: Apache-2.0
// io: numbered accesses in flight, so that a lost or doubled one shows on one side or the other.
//
// A counter is stored right after its access: seen under a stop, the device is level with it or one ahead.
// The mailbox is the other direction: the device's worker writes to memory at times of its own, never under a stop.
#include "guest/port.h"
#include "guest/scenarios.h"

namespace stopvisor::probe {
namespace {

constexpr uint32_t kRounds = 4; // of one access of each kind; each leaves guest mode

inline volatile uint64_t& mail(const SliceState& state, uint32_t word) {
  return *reinterpret_cast<volatile uint64_t*>(mailbox_word_gpa(state.index, word));
}

// Rings for the next job once the last is done; never waits for it.
void look_into_mailbox(SliceState& state, volatile uint64_t* ring) {
  CpuResults& out = *state.results;
  bool done = true;
  for (uint32_t word = 0; word < kMailboxWords; ++word) {
    const uint64_t value = mail(state, word);
    if (value < state.mail_last[word] || value > out.mail_rung)
      ++out.mail_bad;
    state.mail_last[word] = value;
    done &= value == out.mail_rung;
  }
  if (!done)
    return;
  const uint64_t next = out.mail_rung + 1;
  out.mail_seen = out.mail_rung;
  *const_cast<volatile uint64_t*>(&out.mail_rung) = next; // first: the worker may be quick
  *ring = next;
}

} // namespace

void prepare_mailbox(SliceState& state) {
  const CpuResults& own = *state.results;
  for (uint32_t word = 0; word < kMailboxWords; ++word) {
    if (results().doorbell_present != 0 && own.mail_rung == 0)
      mail(state, word) = 0;
    state.mail_last[word] = own.mail_seen; // no word can be older
  }
}

void io_slice(SliceState& state) {
  if (results().doorbell_present == 0)
    return;
  CpuResults& out = *state.results;
  const auto port = static_cast<uint16_t>(kDoorbellPortBase + 4 * state.index);
  const uint64_t mmio = kDoorbellMmioGpa + 0x40 * uint64_t{state.index};
  auto* mmio_write = reinterpret_cast<volatile uint64_t*>(mmio + kDoorbellMmioWrite);
  auto* mmio_read = reinterpret_cast<volatile uint64_t*>(mmio + kDoorbellMmioRead);
  for (uint32_t round = 0; round < kRounds; ++round) {
    const uint64_t port_sequence = out.io_port_writes + 1;
    out32(port, static_cast<uint32_t>(port_sequence));
    out.io_port_writes = port_sequence;

    const uint32_t port_count = in32(port);
    if (port_count != static_cast<uint32_t>(out.io_port_reads + 1))
      ++out.io_bad;
    out.io_port_reads = port_count;

    const uint64_t mmio_sequence = out.io_mmio_writes + 1;
    *mmio_write = mmio_sequence;
    out.io_mmio_writes = mmio_sequence;

    const uint64_t mmio_count = *mmio_read;
    if (mmio_count != out.io_mmio_reads + 1)
      ++out.io_bad;
    out.io_mmio_reads = mmio_count;
  }
  look_into_mailbox(state, reinterpret_cast<volatile uint64_t*>(mmio + kDoorbellMmioRing));
}

} // namespace stopvisor::probe
