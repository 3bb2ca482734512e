// SPDX-License-Identifier: Apache-2.0
// What a run did and found, and who is at what: shared by all threads of the stress.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stopvisor::stress {

enum class Operation : uint32_t {
  kUpdateLedger,
  kUpdateCode,
  kInspect,
  kHold,
  kStopOne,
  kStopOneNoWait,
  kStopTwo,
  kStopCpus,
  kTryStopCpus,
  kStopMachine,
  kPartialHold,
  kReset,
  kHotplug,
};
inline constexpr uint32_t kOperations = 13;
inline constexpr std::array<const char*, kOperations> kOperationNames{
    "ledger", "code",     "inspect",      "hold", "one",   "one_nowait", "two",
    "cpus",   "try_cpus", "stop_machine", "part", "reset", "hotplug"};

class Journal {
public:
  static constexpr uint32_t kThreads = 6; // the main thread, and up to 5 clients

  // CONTEXT, all: any thread.
  void doing(uint32_t thread, const char* what) noexcept {
    doing_[thread].store(what, std::memory_order_relaxed);
    progress_.fetch_add(1, std::memory_order_relaxed); // a sign of life, orders nothing
  }
  [[nodiscard]] const char* doing(uint32_t thread) const noexcept {
    return doing_[thread].load(std::memory_order_relaxed);
  }
  [[nodiscard]] uint64_t progress() const noexcept { return progress_.load(std::memory_order_relaxed); }

  enum class Ending : uint32_t { kDone, kTooLate, kRefused };
  void count(Operation operation, Ending ending) noexcept {
    counts_[static_cast<uint32_t>(operation)][static_cast<uint32_t>(ending)].fetch_add(1,
                                                                                       std::memory_order_relaxed);
  }
  [[nodiscard]] uint64_t counted(uint32_t operation, Ending ending) const noexcept {
    return counts_[operation][static_cast<uint32_t>(ending)].load(std::memory_order_relaxed);
  }

  void fail(std::string what) {
    const std::lock_guard guard(lock_);
    if (failures_.size() < 20)
      failures_.push_back(std::move(what));
    failed_.store(true, std::memory_order_relaxed); // a hint to end; the lock orders the text
  }
  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_relaxed); }
  // Whether each failure speaks of `what`.
  [[nodiscard]] bool failed_only_with(std::string_view what) const {
    const auto all = failures();
    return !all.empty() && std::ranges::all_of(all, [&](const std::string& text) { return text.contains(what); });
  }
  [[nodiscard]] std::vector<std::string> failures() const {
    const std::lock_guard guard(lock_);
    return failures_;
  }

private:
  std::array<std::atomic<const char*>, kThreads> doing_{};
  std::atomic<uint64_t> progress_{0};
  std::array<std::array<std::atomic<uint64_t>, 3>, kOperations> counts_{};
  std::atomic<bool> failed_{false};
  mutable std::mutex lock_; // a leaf
  std::vector<std::string> failures_;
};

} // namespace stopvisor::stress
