// SPDX-License-Identifier: Apache-2.0
// How far something is, in one line of a terminal that is written again and again, and gone at the end.
#pragma once

#include <cstdint>
#include <string>

namespace stopvisor::tools {

class ProgressLine {
public:
  ProgressLine();
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // Nothing is ever shown where this is false: stderr is a pipe or a file.
  [[nodiscard]] bool on_terminal() const noexcept { return terminal_; }
  // "WHAT: 12.0 MiB of 48 MiB (25%)"; without the sizes where `total` is 0. CONTEXT: one thread at a time.
  void show(const std::string& what, uint64_t done, uint64_t total);

private:
  bool terminal_;
  bool shown_ = false;
};

} // namespace stopvisor::tools
