// SPDX-License-Identifier: Apache-2.0
// Notices that nothing goes on any more, and says what each thread was at: the hang detector, not a clock for
// anything.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "tests/stress/journal.h"

namespace stopvisor::stress {

class Watch {
public:
  static constexpr int kPatienceSeconds = 60;

  // `on_hang` is called where the journal shows no progress for so long; it ends the process.
  // CONTEXT of on_hang: a thread of its own, while everybody else hangs.
  Watch(const Journal& journal, std::function<void()> on_hang);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

private:
  void look();

  const Journal& journal_;
  const std::function<void()> on_hang_;
  std::mutex lock_;
  std::condition_variable changed_;
  bool over_ = false; // under the lock
  std::thread thread_;
};

} // namespace stopvisor::stress
