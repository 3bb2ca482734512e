// SPDX-License-Identifier: Apache-2.0
#include "tools/probe/probe_view.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace stopvisor::tools {
namespace {

// The guest writes these words at any time; relaxed accesses of whole words, ordering comes from stops.
template <class Word>
Word load(const Word& word) noexcept {
  return __atomic_load_n(&word, __ATOMIC_RELAXED);
}
template <class Word>
void store(Word& word, Word value) noexcept {
  __atomic_store_n(&word, value, __ATOMIC_RELAXED);
}

} // namespace

probe::Results* ProbeView::results() const noexcept {
  return reinterpret_cast<probe::Results*>(
      memory_.range(vmm::Gpa{probe::kResultsGpa}, sizeof(probe::Results)).data());
}

std::expected<void, vmm::Error> ProbeView::await(const char* what, unsigned seconds,
                                                 const std::function<bool()>& alive,
                                                 const std::function<bool()>& reached) const {
  // The guest has no way to wake us: its memory is all it writes. So this looks again every millisecond.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!reached()) {
    if (!alive())
      return std::unexpected(vmm::Error{what, "probe guest", "the virtual machine has ended"});
    if (std::chrono::steady_clock::now() >= deadline)
      return std::unexpected(vmm::Error{what, "probe guest", "no answer within " + std::to_string(seconds) + " s",
                                        vmm::Status::kBusy});
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return {};
}

std::expected<void, vmm::Error> ProbeView::await_running(uint32_t cpus, unsigned seconds,
                                                         const std::function<bool()>& alive) const {
  const probe::Results* const page = results();
  if (page == nullptr)
    return std::unexpected(vmm::Error{"wait for start", "probe guest", "its results lie outside guest memory"});
  return await("wait for start", seconds, alive, [&] {
    if (load(page->magic) != probe::kMagic)
      return false;
    for (uint32_t cpu = 0; cpu < cpus; ++cpu)
      if (load(page->cpu[cpu].slices) == 0)
        return false;
    return true;
  });
}

std::expected<void, vmm::Error> ProbeView::await_phase(uint32_t cpu, probe::CpuPhase phase, unsigned seconds,
                                                       const std::function<bool()>& alive) const {
  return await("wait for vCPU", seconds, alive,
               [&] { return load(results()->cpu[cpu].phase) == static_cast<uint32_t>(phase); });
}

bool ProbeView::is_up() const noexcept {
  return load(results()->magic) == probe::kMagic;
}

uint32_t ProbeView::cpus_present() const noexcept {
  return load(results()->cpus_present);
}

uint32_t ProbeView::cpus_running() const noexcept {
  return load(results()->cpus_running);
}

probe::CpuResults ProbeView::cpu(uint32_t cpu) const noexcept {
  probe::CpuResults copy{};
  const probe::Results* const page = results();
  if (page == nullptr || cpu >= probe::kMaxCpus)
    return copy;
  const auto* from = reinterpret_cast<const uint64_t*>(&page->cpu[cpu]);
  auto* to = reinterpret_cast<uint64_t*>(&copy);
  static_assert(sizeof(probe::CpuResults) % sizeof(uint64_t) == 0);
  for (size_t word = 0; word < sizeof(probe::CpuResults) / sizeof(uint64_t); ++word)
    to[word] = load(from[word]);
  return copy;
}

ProbeTotals ProbeView::totals(uint32_t cpus) const noexcept {
  ProbeTotals totals;
  for (uint32_t n = 0; n < cpus; ++n) {
    const probe::CpuResults one = cpu(n);
    totals.slices += one.slices;
    totals.ledger_reads += one.ledger_reads;
    totals.ledger_torn += one.ledger_torn;
    totals.code_calls += one.code_calls;
    totals.code_torn += one.code_torn;
    totals.dirty_pages += one.dirty_pages;
    totals.io_bad += one.io_bad;
    totals.mail_seen += one.mail_seen;
    totals.mail_bad += one.mail_bad;
    totals.gap_max_ticks = std::max(totals.gap_max_ticks, one.gap_max_ticks);
  }
  return totals;
}

uint64_t ProbeView::tsc_hz() const noexcept {
  return load(results()->tsc_hz);
}

void ProbeView::choose_scenarios(uint32_t mask) const noexcept {
  store(results()->control.scenarios, mask);
}

std::expected<void, vmm::Error> ProbeView::reset_counters(uint32_t cpus, unsigned seconds,
                                                          const std::function<bool()>& alive) const {
  probe::Results* const page = results();
  const uint64_t epoch = load(page->control.epoch) + 1;
  store(page->control.epoch, epoch);
  return await("reset counters", seconds, alive, [&] {
    for (uint32_t cpu = 0; cpu < cpus; ++cpu)
      if (load(page->cpu[cpu].phase) != static_cast<uint32_t>(probe::CpuPhase::kOffline) &&
          load(page->cpu[cpu].epoch) != epoch)
        return false;
    return true;
  });
}

void ProbeView::write_ledger(uint64_t value) const noexcept {
  for (uint32_t word = 0; word < probe::kLedgerWords; ++word) {
    const auto bytes = memory_.range(vmm::Gpa{probe::ledger_word_gpa(word)}, sizeof value);
    store(*reinterpret_cast<uint64_t*>(bytes.data()), value);
  }
}

bool ProbeView::mailbox_is_level(uint32_t cpu) const noexcept {
  const auto word = [&](uint32_t number) {
    const auto bytes = memory_.range(vmm::Gpa{probe::mailbox_word_gpa(cpu, number)}, sizeof(uint64_t));
    return load(*reinterpret_cast<const uint64_t*>(bytes.data()));
  };
  for (uint32_t number = 1; number < probe::kMailboxWords; ++number)
    if (word(number) != word(0))
      return false;
  return true;
}

void ProbeView::rewrite_code(uint8_t byte) const noexcept {
  for (uint32_t site = 0; site < probe::kCodeSites; ++site) {
    const auto bytes = memory_.range(vmm::Gpa{probe::code_site_gpa(site)}, probe::kCodeSiteBytes);
    std::memset(bytes.data() + probe::kCodeImmediateOffset, byte, sizeof(uint64_t));
  }
}

} // namespace stopvisor::tools
