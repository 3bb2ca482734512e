// SPDX-License-Identifier: Apache-2.0
// A command run on the user's behalf, in a process group of its own.
//
// So that all of it can be signalled, however many processes it becomes. Where we have the terminal, the
// command gets it while it runs: Ctrl-C and Ctrl-Z reach it and not us, as in a shell.
#pragma once

#include <sys/types.h>

#include <expected>
#include <string>
#include <vector>

namespace stopvisor::tools {

class ChildCommand {
public:
  // Starts `words` (looked for in PATH) with `environment` ("NAME=value") added to ours, all signals at their
  // defaults and none blocked. `stdout_to_stderr`: what it prints goes to our stderr.
  // CONTEXT: SIGCHLD and SIGTTOU are blocked. RETURNS: an errno value where it cannot be started.
  [[nodiscard]] static std::expected<ChildCommand, int>
  start(const std::vector<std::string>& words, const std::vector<std::string>& environment, bool stdout_to_stderr);
  // Takes the terminal back.
  ~ChildCommand();
  ChildCommand(ChildCommand&& other) noexcept;
  ChildCommand& operator=(ChildCommand&&) = delete;

  // To the whole group.
  void signal(int number) const noexcept;
  // Looks, without blocking, whether it has ended. Where it was stopped (Ctrl-Z) we stop as well, and it goes
  // on when we are continued. RETURNS: whether it has ended.
  [[nodiscard]] bool poll_end() noexcept;
  // Its exit status, or 128 and the signal that killed it.
  [[nodiscard]] int status() const noexcept { return status_; }

private:
  ChildCommand(pid_t pid, bool has_terminal) : pid_(pid), has_terminal_(has_terminal) {}
  void follow_stop() noexcept;

  pid_t pid_;
  bool has_terminal_;
  int status_ = 0;
};

} // namespace stopvisor::tools
