// SPDX-License-Identifier: Apache-2.0
// Runs the rest of the program in the background, and waits in the foreground until it is under way.
#pragma once

#include <sys/types.h>

#include <expected>
#include <functional>
#include <string>

#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::tools {

// The background process's way to tell the one in the foreground how it went. Telling ends the connection.
class Foreground {
public:
  explicit Foreground(vmm::UniqueFd pipe) : pipe_(std::move(pipe)) {}
  // `word`: what detach() returns in the foreground.
  void tell_ready(const std::string& word);
  // Where nothing was told before.
  void tell_error(const vmm::Error& error);
  [[nodiscard]] bool told() const { return !pipe_; }

private:
  vmm::UniqueFd pipe_;
};

struct Detached {
  pid_t pid = 0;
  std::string word;
};

// Forks. The child, in a session of its own, with stdin and stdout at /dev/null, runs `background` and exits with
// what that returns. The parent waits until it was told something.
// CONTEXT: from the only thread of the process. RETURNS, in the parent alone: what was told; kFailed where the
// child ended without a word.
[[nodiscard]] std::expected<Detached, vmm::Error> detach(const std::function<int(Foreground&)>& background);

// From now on stderr goes to the file `path`, made anew with mode 0600. RETURNS: whether it could be made.
bool log_to(const std::string& path);

} // namespace stopvisor::tools
