// SPDX-License-Identifier: Apache-2.0
// What we know of the VM's guest as a Linux kernel: found once, kept, and verified under the stop of each use.
//
// The search takes tens of milliseconds and needs no stop, as the kernel's tables are constant; so the guest is
// held for its registers, runs on meanwhile, and is held again for the use. What was found is forgotten when the
// guest resets, and when its identifying bytes are not in memory any more.
#pragma once

#include <chrono>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "stopper/function_ref.h"
#include "vmm/error.h"
#include "vmm/linux/linux_kernel.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

class GuestKnowledge {
public:
  using Clock = std::chrono::steady_clock;
  using Kernel = std::shared_ptr<const LinuxKernel>;
  using Use = stopper::FunctionRef<std::expected<void, Error>(const Kernel&)>;

  explicit GuestKnowledge(Vm& vm) : vm_(vm) {}

  // Runs `use` under a stop, with the kernel that was verified under it. `symbols`: path of a file with its
  // symbols; empty: those that it carries itself. CONTEXT: a connection thread; several may ask, one searches;
  // blocks. RETURNS: what `use` returns; kRefused where the guest is no Linux that we can find, or the file is of
  // another build; kUsage where the file is no file of symbols; kBusy where `deadline` passed.
  [[nodiscard]] std::expected<void, Error> with_kernel(const char* operation, const std::string& symbols,
                                                       Clock::time_point deadline, Use use);

private:
  // A kernel, and what it was found with.
  struct Found {
    Kernel kernel;
    uint64_t resets = 0;
    std::string symbols;
    std::string stamp; // of that file
  };
  [[nodiscard]] std::expected<Found, Error> find(const char* operation, const std::string& symbols,
                                                 Clock::time_point deadline);
  void forget(const Found& found);

  Vm& vm_;
  std::timed_mutex searching_; // held for a search; then mutex_
  std::mutex mutex_;           // a leaf
  std::optional<Found> found_; // under mutex_
};

// The registers of each vCPU that exists. CONTEXT: under a stop.
[[nodiscard]] std::expected<std::vector<Registers>, Error> all_registers(const Vm& vm);

} // namespace stopvisor::vmm
