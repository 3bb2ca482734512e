// SPDX-License-Identifier: Apache-2.0
// One round of the stress: a VM, its clients, the check at the end, and the VM's end.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/stress/client.h"
#include "tests/stress/nuisance.h"

namespace stopvisor::stress {

struct RoundTotals {
  uint64_t stops = 0; // as the stop machinery numbered them
  uint64_t resets = 0;
  uint64_t delays = 0;
  uint64_t drops = 0;
  uint64_t ledger_reads = 0;
  uint64_t io_accesses = 0;
  uint64_t mails = 0;
};

class Round {
public:
  // All that is chosen at random follows from `seed`. With `tears` the ledger is updated without a stop.
  Round(uint64_t seed, bool tears, Journal& journal);

  // RETURNS what was done. What was wrong is in the journal. CONTEXT: the main thread, once.
  RoundTotals run();

  [[nodiscard]] const std::string& description() const noexcept { return description_; }
  // What each thread and vCPU is at. CONTEXT: any thread; for a round that hangs.
  [[nodiscard]] std::string state() const;

private:
  enum class End { kButton, kRequest, kInTheMiddle, kDestroyed };

  [[nodiscard]] bool start();
  void work();
  void await(const char* what, const std::function<bool()>& reached);
  void check_at_the_end(RoundTotals& totals);
  void end();

  Random random_;
  Journal& journal_;
  const bool tears_;
  uint32_t cpus_;
  End end_;
  uint32_t operations_;
  vmm::VmConfig config_;
  std::string description_;
  // In this order: hooks and works are in the hands of the VM's threads until it is gone.
  Nuisance nuisance_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::unique_ptr<vmm::Vm> vm_;
  std::unique_ptr<Target> target_;
};

} // namespace stopvisor::stress
