// SPDX-License-Identifier: Apache-2.0
// The host's view of a running probe guest: its results, its control words, its ledger and its code sites.
//
// The demonstration, the benchmark and the tests all look at the guest through this one class. Counters are
// copied word by word while the guest goes on: each is right by itself; where two must belong together, copy
// them under a stop.
#pragma once

#include <cstdint>
#include <expected>
#include <functional>

#include "guest/probe_abi.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"

namespace stopvisor::tools {

// Sums over all vCPUs (gap_max_ticks: the largest).
struct ProbeTotals {
  uint64_t slices = 0;
  uint64_t ledger_reads = 0;
  uint64_t ledger_torn = 0;
  uint64_t code_calls = 0;
  uint64_t code_torn = 0;
  uint64_t dirty_pages = 0;
  uint64_t io_bad = 0;
  uint64_t mail_seen = 0;
  uint64_t mail_bad = 0;
  uint64_t gap_max_ticks = 0;
};

class ProbeView {
public:
  // `memory` must outlive the view. CONTEXT: any thread.
  explicit ProbeView(const vmm::GuestMemory& memory) noexcept : memory_(memory) {}

  // Blocks until `cpus` vCPUs of the guest have reached their scenario loop and run a slice.
  // RETURNS: kBusy where that takes longer than `seconds`, kFailed where `alive` says the VM has ended.
  [[nodiscard]] std::expected<void, vmm::Error> await_running(uint32_t cpus, unsigned seconds,
                                                              const std::function<bool()>& alive) const;

  // Whether the boot processor has set everything up: what the guest reports is valid.
  [[nodiscard]] bool is_up() const noexcept;
  // vCPUs the guest is to use, and those at work now. They differ for moments after one was added or taken away.
  [[nodiscard]] uint32_t cpus_present() const noexcept;
  [[nodiscard]] uint32_t cpus_running() const noexcept;
  // Blocks until vCPU `cpu` is in this phase. RETURNS as await_running().
  [[nodiscard]] std::expected<void, vmm::Error> await_phase(uint32_t cpu, probe::CpuPhase phase, unsigned seconds,
                                                            const std::function<bool()>& alive) const;

  // Copies one vCPU's counters.
  [[nodiscard]] probe::CpuResults cpu(uint32_t cpu) const noexcept;
  [[nodiscard]] ProbeTotals totals(uint32_t cpus) const noexcept;
  [[nodiscard]] uint64_t tsc_hz() const noexcept;

  void choose_scenarios(uint32_t mask) const noexcept;
  // Has every vCPU zero its counters, and waits until each has that is at work (the others will when they come
  // back). RETURNS as await_running().
  [[nodiscard]] std::expected<void, vmm::Error> reset_counters(uint32_t cpus, unsigned seconds,
                                                               const std::function<bool()>& alive) const;

  // Writes `value` to every ledger word, one after the other. Atomic for the guest only under a stop.
  void write_ledger(uint64_t value) const noexcept;
  // RETURNS whether all words of a vCPU's mailbox are equal, as they are whenever the devices are held.
  [[nodiscard]] bool mailbox_is_level(uint32_t cpu) const noexcept;
  // Rewrites the bytes of every code site so that it returns eight bytes of `byte`.
  void rewrite_code(uint8_t byte) const noexcept;

private:
  [[nodiscard]] probe::Results* results() const noexcept;
  [[nodiscard]] std::expected<void, vmm::Error> await(const char* what, unsigned seconds,
                                                      const std::function<bool()>& alive,
                                                      const std::function<bool()>& reached) const;

  const vmm::GuestMemory& memory_;
};

} // namespace stopvisor::tools
