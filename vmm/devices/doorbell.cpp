// SPDX-License-Identifier: Apache-2.0
#include "vmm/devices/doorbell.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "vmm/device_worker.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kPortStride = 4;
constexpr uint64_t kMmioStride = 0x40;

void put_all_ones(std::span<std::byte> data) {
  std::fill(data.begin(), data.end(), std::byte{0xff});
}

// Counts a write of `value` after `last`, both of them modulo 2^(8 * sizeof(Number)), where a distance of more
// than half the circle is one backwards.
template <class Number>
void count_write(DoorbellCounts& counts, uint64_t& last, Number value) {
  const auto distance = static_cast<Number>(value - static_cast<Number>(last));
  if (distance == 0 || distance > static_cast<Number>(~Number{0}) / 2)
    ++counts.doubled;
  else
    counts.lost += distance - 1;
  last = value;
}

} // namespace

Doorbell::Doorbell(const GuestMemory& memory, WrittenPages& written)
    : memory_(memory), written_(written), cpus_(std::make_unique<std::array<Registers, probe::kMaxCpus>>()) {}

std::expected<void, Error> Doorbell::attach_to(Bus& ports, Bus& mmio) {
  if (auto done = ports.attach(probe::kDoorbellSignaturePort, sizeof(uint32_t), signature_); !done)
    return done;
  if (auto done = ports.attach(probe::kDoorbellPortBase, kPortStride * probe::kMaxCpus, ports_); !done)
    return done;
  return mmio.attach(probe::kDoorbellMmioGpa, probe::kDoorbellMmioBytes, mmio_);
}

DoorbellCounts Doorbell::counts(uint32_t cpu) const {
  if (cpu >= cpus_->size())
    return {};
  const Registers& registers = (*cpus_)[cpu];
  const std::lock_guard guard(registers.lock);
  return registers.counts;
}

DoorbellCounts Doorbell::total() const {
  DoorbellCounts sum;
  for (uint32_t cpu = 0; cpu < probe::kMaxCpus; ++cpu) {
    const DoorbellCounts one = counts(cpu);
    sum.port_writes += one.port_writes;
    sum.port_reads += one.port_reads;
    sum.mmio_writes += one.mmio_writes;
    sum.mmio_reads += one.mmio_reads;
    sum.lost += one.lost;
    sum.doubled += one.doubled;
  }
  return sum;
}

void Doorbell::ring(uint32_t cpu, uint64_t number) noexcept {
  if (worker_ != nullptr && jobs_.put(cpu, number))
    worker_->notify();
}

bool Doorbell::do_job() noexcept {
  const auto job = jobs_.take();
  if (!job)
    return false;
  constexpr uint64_t kMailboxBytes = probe::mailbox_word_gpa(0, probe::kMailboxWords) - probe::kMailboxGpa;
  const std::span<std::byte> box = memory_.range(Gpa{probe::mailbox_word_gpa(job->slot, 0)}, kMailboxBytes);
  if (box.empty())
    return true;
  for (uint32_t word = 0; word < probe::kMailboxWords; ++word) {
    if (word == probe::kMailboxWords / 2)
      worker_->in_the_middle();
    std::byte* const at = box.data() + (probe::mailbox_word_gpa(0, word) - probe::kMailboxGpa);
    // The guest reads the words meanwhile. release: it sees them change in order.
    std::atomic_ref(*reinterpret_cast<uint64_t*>(at)).store(job->number, std::memory_order_release);
  }
  written_.note_data(box);
  return true;
}

// CONTEXT: under a stop, so the worker is between two jobs.
void Doorbell::reset() noexcept {
  jobs_.drop();
  for (Registers& registers : *cpus_) {
    const std::lock_guard guard(registers.lock);
    registers.counts = {};
    registers.last_port = registers.last_mmio = 0;
  }
}

// The registers of the vCPUs up to the last that used its own, then the jobs that nobody has taken yet.
void Doorbell::save_state(StateWriter& to) const {
  uint32_t used = probe::kMaxCpus;
  while (used != 0 && counts(used - 1) == DoorbellCounts{})
    --used;
  to.put(used);
  for (uint32_t cpu = 0; cpu < used; ++cpu) {
    const Registers& registers = (*cpus_)[cpu];
    const std::lock_guard guard(registers.lock);
    const DoorbellCounts& counts = registers.counts;
    put_fields(to, counts.port_writes, counts.port_reads, counts.mmio_writes, counts.mmio_reads, counts.lost,
               counts.doubled, registers.last_port, registers.last_mmio);
  }
  uint32_t jobs = 0;
  jobs_.each([&](uint32_t /*slot*/, uint64_t /*number*/) { ++jobs; });
  to.put(jobs);
  jobs_.each([&](uint32_t slot, uint64_t number) { put_fields(to, slot, number); });
}

void Doorbell::restore_state(StateReader& from) {
  const auto used = from.get<uint32_t>();
  if (used > probe::kMaxCpus)
    return from.refuse("more vCPUs than there can be");
  for (uint32_t cpu = 0; cpu < used; ++cpu) {
    Registers& to = (*cpus_)[cpu];
    const std::lock_guard guard(to.lock);
    get_fields(from, to.counts.port_writes, to.counts.port_reads, to.counts.mmio_writes, to.counts.mmio_reads,
               to.counts.lost, to.counts.doubled, to.last_port, to.last_mmio);
  }
  const auto jobs = from.get<uint32_t>();
  if (jobs > probe::kMaxCpus)
    return from.refuse("more jobs than there can be");
  for (uint32_t job = 0; job < jobs; ++job) {
    const auto slot = from.get<uint32_t>();
    if (slot >= probe::kMaxCpus)
      return from.refuse("a job of a vCPU that cannot be");
    (void)jobs_.put(slot, from.get<uint64_t>()); // the worker looks before it sleeps
  }
}

void Doorbell::Signature::read(uint64_t offset, std::span<std::byte> data) noexcept {
  const uint32_t signature = probe::kDoorbellSignature;
  if (offset != 0 || data.size() != sizeof signature)
    return put_all_ones(data);
  std::memcpy(data.data(), &signature, sizeof signature);
}

void Doorbell::Signature::write(uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept {}

void Doorbell::Ports::read(uint64_t offset, std::span<std::byte> data) noexcept {
  if (offset % kPortStride != 0 || data.size() != sizeof(uint32_t))
    return put_all_ones(data);
  Registers& registers = (*bell_.cpus_)[offset / kPortStride];
  const std::lock_guard guard(registers.lock);
  const auto count = static_cast<uint32_t>(++registers.counts.port_reads);
  std::memcpy(data.data(), &count, sizeof count);
}

void Doorbell::Ports::write(uint64_t offset, std::span<const std::byte> data) noexcept {
  uint32_t value = 0;
  if (offset % kPortStride != 0 || data.size() != sizeof value)
    return;
  std::memcpy(&value, data.data(), sizeof value);
  Registers& registers = (*bell_.cpus_)[offset / kPortStride];
  const std::lock_guard guard(registers.lock);
  ++registers.counts.port_writes;
  count_write(registers.counts, registers.last_port, value);
}

void Doorbell::Mmio::read(uint64_t offset, std::span<std::byte> data) noexcept {
  if (offset % kMmioStride != probe::kDoorbellMmioRead || data.size() != sizeof(uint64_t))
    return put_all_ones(data);
  Registers& registers = (*bell_.cpus_)[offset / kMmioStride];
  const std::lock_guard guard(registers.lock);
  const uint64_t count = ++registers.counts.mmio_reads;
  std::memcpy(data.data(), &count, sizeof count);
}

void Doorbell::Mmio::write(uint64_t offset, std::span<const std::byte> data) noexcept {
  uint64_t value = 0;
  const uint64_t which = offset % kMmioStride;
  if ((which != probe::kDoorbellMmioWrite && which != probe::kDoorbellMmioRing) || data.size() != sizeof value)
    return;
  std::memcpy(&value, data.data(), sizeof value);
  if (which == probe::kDoorbellMmioRing)
    return bell_.ring(static_cast<uint32_t>(offset / kMmioStride), value);
  Registers& registers = (*bell_.cpus_)[offset / kMmioStride];
  const std::lock_guard guard(registers.lock);
  ++registers.counts.mmio_writes;
  count_write(registers.counts, registers.last_mmio, value);
}

} // namespace stopvisor::vmm
