// SPDX-License-Identifier: Apache-2.0
// A file system whose n-th call fails, or is the last thing its process does.
#pragma once

#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <functional>
#include <optional>

#include "tests/unit/snapshot/fixture.h"
#include "tools/snapshot/file_system.h"

namespace stopvisor::snapshot::testing {

inline constexpr int kDies = 0; // in the place of an errno value

class FailingFiles : public FileSystem {
public:
  FailingFiles(int at, int error) : at_(at), error_(error) {}
  [[nodiscard]] bool failed() const { return calls_ > at_; }
  // Of a call that failed.
  [[nodiscard]] Call where() const { return where_; }

private:
  int fault(Call call) override {
    if (calls_.fetch_add(1) != at_)
      return 0;
    where_ = call;
    if (error_ == kDies)
      (void)::raise(SIGKILL);
    return error_;
  }

  int at_;
  int error_;
  std::atomic<int> calls_ = 0;
  std::atomic<Call> where_ = Call::kList;
};

// Does it in a process of its own. RETURNS: what it returned; nothing where the process died.
[[nodiscard]] inline std::optional<bool> in_child(const std::function<bool()>& work) {
  const pid_t child = ::fork();
  if (child == 0)
    ::_exit(work() ? 0 : 1);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? std::optional(WEXITSTATUS(status) == 0) : std::nullopt;
}

} // namespace stopvisor::snapshot::testing
