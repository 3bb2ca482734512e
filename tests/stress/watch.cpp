// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/watch.h"

#include <chrono>
#include <utility>

namespace stopvisor::stress {

Watch::Watch(const Journal& journal, std::function<void()> on_hang)
    : journal_(journal), on_hang_(std::move(on_hang)), thread_([this] { look(); }) {}

Watch::~Watch() {
  {
    const std::lock_guard guard(lock_);
    over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watch::look() {
  uint64_t last = journal_.progress();
  std::unique_lock guard(lock_);
  while (!changed_.wait_for(guard, std::chrono::seconds(kPatienceSeconds), [this] { return over_; })) {
    const uint64_t now = journal_.progress();
    if (now == last)
      on_hang_();
    last = now;
  }
}

} // namespace stopvisor::stress
