// SPDX-License-Identifier: Apache-2.0
// Carries bytes between this process's terminal (or pipes) and a VM's console, until one end has had enough.
#pragma once

#include <cstddef>
#include <expected>
#include <span>
#include <string>
#include <vector>

#include "vmm/console_input.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::tools {

class ConsoleLink {
public:
  enum class End {
    kHungUp, // the VM: all it sent was written
    kQuit,   // the user: Ctrl-A x
  };

  // `connection`: a stream socket, which has sent `early` already. `input`: what is read; negative: nothing. On a
  // terminal, Ctrl-A begins a command. `output`: what is written to; left as it is, in blocking mode too.
  // CONTEXT: the descriptors must outlive it.
  ConsoleLink(int connection, std::string_view early, int input, int output);

  // CONTEXT: blocks. A second thread may not use it meanwhile. RETURNS: kFailed where `output` cannot be written,
  // unless its reader is gone: that is as good as kQuit.
  [[nodiscard]] std::expected<End, vmm::Error> run();

private:
  [[nodiscard]] bool done() const { return hung_up_ && to_user_.empty(); }
  void read_connection();
  void write_connection();
  [[nodiscard]] bool read_keys(); // false: the user quits
  [[nodiscard]] std::expected<bool, vmm::Error> write_output();

  const int connection_;
  const int input_;
  const bool terminal_;
  const vmm::UniqueFd output_;
  vmm::ConsoleEscape escape_;
  bool hung_up_ = false;
  bool input_ended_ = false;
  std::vector<std::byte> to_user_;
  std::vector<std::byte> to_guest_;
};

} // namespace stopvisor::tools
