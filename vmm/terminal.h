// SPDX-License-Identifier: Apache-2.0
// Raw mode of the user's terminal, given back on every way out of the process.
//
// A console needs each key as it is typed; a shell that comes back to a raw terminal is unusable. So that
// not only the destructor restores it: exit() from anywhere does, and so do the signals that end a process
// (abort, a fault, and SIGINT, SIGTERM, SIGHUP, SIGQUIT where the process does not handle these itself) or
// stop it (SIGTSTP; SIGCONT in the foreground makes it raw again). SIGKILL and _exit() cannot be helped.
#pragma once

#include <expected>

#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

// A terminal's mode and a process's signal handlers exist once, and so does this object's state.
class RawTerminal {
public:
  // Makes the terminal behind `fd` raw: no echo, no line editing, no signals from keys. Output processing
  // stays as it was, so that messages of the VMM still begin at the left. Where `fd` is no terminal, or not
  // open, nothing is changed and active() is false. In the background it waits for the foreground.
  // CONTEXT: once at a time, before vCPU threads start; handlers of SIGINT, SIGTERM, SIGHUP and SIGQUIT must
  // be installed before. RETURNS: kFailed where the terminal refuses, or another RawTerminal exists.
  [[nodiscard]] static std::expected<RawTerminal, Error> enter(int fd);

  // Restores the terminal's mode where it is ours, for who calls _exit() next. CONTEXT: any; async-signal-safe.
  static void give_back() noexcept;

  // Restores the terminal and the signal handlers that are still ours.
  ~RawTerminal();
  RawTerminal(RawTerminal&&) noexcept = default;
  RawTerminal& operator=(RawTerminal&&) = delete;

  [[nodiscard]] bool active() const noexcept { return static_cast<bool>(terminal_); }
  // An eventfd that becomes readable each time the process is continued; -1 where not active.
  [[nodiscard]] int continued_fd() const noexcept { return continued_.get(); }

private:
  RawTerminal() = default;

  UniqueFd terminal_;
  UniqueFd continued_;
};

} // namespace stopvisor::vmm
