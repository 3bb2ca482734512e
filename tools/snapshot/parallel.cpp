// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/parallel.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace stopvisor::snapshot {
namespace {

constexpr unsigned kMostThreads = 4; // file systems write one file one thread at a time: more wait

// What the threads have in common.
class Pieces {
public:
  explicit Pieces(uint64_t count) noexcept : count_(count) {}

  // RETURNS: nothing where there is no more to do.
  [[nodiscard]] std::optional<uint64_t> next() noexcept {
    // Relaxed: each piece is taken once, and what it is about was there before the threads.
    const uint64_t piece = next_.fetch_add(1, std::memory_order_relaxed);
    return piece < count_ ? std::optional(piece) : std::nullopt;
  }
  void fail(vmm::Error error) {
    next_.store(count_, std::memory_order_relaxed); // relaxed: the sooner it is seen the better, no more
    const std::scoped_lock lock(mutex_);
    if (!error_)
      error_ = std::move(error);
  }
  // When no thread runs any more.
  [[nodiscard]] std::optional<vmm::Error> take_error() noexcept { return std::exchange(error_, std::nullopt); }

private:
  uint64_t count_;
  std::atomic<uint64_t> next_ = 0;
  std::mutex mutex_;
  std::optional<vmm::Error> error_;
};

} // namespace

std::expected<void, vmm::Error> in_parallel(const Work& how, uint64_t pieces,
                                            const std::function<std::expected<void, vmm::Error>(uint64_t)>& work) {
  Pieces left(pieces);
  const auto error = [&](std::string reason) {
    return vmm::Error{std::string(how.operation), std::string(how.object), std::move(reason)};
  };
  const auto run = [&] {
    try {
      while (const auto piece = left.next()) {
        if (how.stop.stop_requested())
          return left.fail(error("was cancelled"));
        if (auto good = how.go_on ? how.go_on() : std::expected<void, vmm::Error>{}; !good)
          return left.fail(std::move(good.error()));
        if (auto done = work(*piece); !done)
          return left.fail(std::move(done.error()));
      }
    } catch (const std::exception& failure) { // no memory: an exception must not leave a thread
      left.fail(error(failure.what()));
    }
  };
  {
    const unsigned wanted =
        how.threads != 0 ? how.threads : std::min(kMostThreads, std::thread::hardware_concurrency());
    std::vector<std::jthread> others;
    try {
      for (uint64_t i = 1; i < std::min<uint64_t>(wanted, pieces); ++i)
        others.emplace_back(run);
    } catch (const std::system_error&) { // NOLINT(bugprone-empty-catch): those threads that there are do it
    }
    run();
  }
  if (auto failed = left.take_error())
    return std::unexpected(*std::move(failed));
  return {};
}

} // namespace stopvisor::snapshot
