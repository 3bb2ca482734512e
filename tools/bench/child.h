// SPDX-License-Identifier: Apache-2.0
// A child process of the benchmark, ended with its owner.
#pragma once

#include <sys/types.h>

#include <expected>
#include <string>
#include <utility>
#include <vector>

#include "vmm/error.h"

namespace stopvisor::tools {

class Child {
public:
  // Starts `command` (looked up in PATH) with its standard streams on /dev/null, and its own signal mask empty.
  // RETURNS: kFailed where it cannot be started.
  [[nodiscard]] static std::expected<Child, vmm::Error> start(const std::vector<std::string>& command);
  ~Child();
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}
  Child& operator=(Child&&) = delete;

  [[nodiscard]] bool alive() noexcept;

private:
  explicit Child(pid_t pid) noexcept : pid_(pid) {}
  pid_t pid_ = 0;
};

} // namespace stopvisor::tools
