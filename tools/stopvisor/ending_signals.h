// SPDX-License-Identifier: Apache-2.0
// The signals that end a VM's process: SIGINT, SIGTERM, SIGHUP and SIGQUIT.
#pragma once

#include <atomic>
#include <expected>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

#include "vmm/error.h"
#include "vmm/unique_fd.h"
#include "vmm/vm.h"

namespace stopvisor::tools {

// A thread that turns the first ending signal into the VM's end, or into that of what is done before there is one,
// and a second one, where that end does not come, into the process's. A thread, because what ends a VM is no work
// for a signal handler. CONTEXT: one a process, made by its only thread; the signals stay blocked after it.
class EndingSignals {
public:
  // That last end has no destructors: `last_act`, which must not block, is called before it.
  explicit EndingSignals(std::function<void()> last_act = {});
  ~EndingSignals() { stop(); }
  EndingSignals(const EndingSignals&) = delete;
  EndingSignals& operator=(const EndingSignals&) = delete;

  // RETURNS: kFailed where the host has no descriptors for it.
  [[nodiscard]] std::expected<void, vmm::Error> watching() const;
  // For what is done before there is a VM.
  [[nodiscard]] std::stop_token asked() const noexcept { return asked_.get_token(); }
  // As if a signal had come, but for taken(). CONTEXT: any thread; does not block for long.
  void ask() noexcept { take(0); }
  // From now on a signal ends `vm`; at once where one was taken before. Until stop().
  void end_of(vmm::Vm& vm);
  void stop() noexcept;
  // relaxed: of interest where somebody was asked to end, which comes after it under a lock, or after stop()
  [[nodiscard]] int taken() const noexcept { return taken_.load(std::memory_order_relaxed); }

private:
  void serve() noexcept;
  void take(int signal) noexcept;
  int wait_for_one(int limit_ms) noexcept;

  const std::function<void()> last_act_;
  vmm::UniqueFd signals_;
  vmm::UniqueFd stop_;
  std::atomic<int> taken_{0};
  std::stop_source asked_;
  std::mutex mutex_;
  vmm::Vm* vm_ = nullptr; // under mutex_
  std::thread thread_;
};

} // namespace stopvisor::tools
