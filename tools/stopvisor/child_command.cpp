// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/child_command.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <utility>

#include "vmm/spawn_arguments.h"

namespace stopvisor::tools {
namespace {

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words)
    pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

} // namespace

std::expected<ChildCommand, int> ChildCommand::start(const std::vector<std::string>& words,
                                                     const std::vector<std::string>& environment,
                                                     bool stdout_to_stderr) {
  vmm::SpawnArguments spawn;
  spawn.lead_own_group();
  const bool has_terminal = ::tcgetpgrp(STDIN_FILENO) == ::getpgrp();
  if (has_terminal)
    ::posix_spawn_file_actions_addtcsetpgrp_np(&spawn.actions, STDIN_FILENO);
  if (stdout_to_stderr)
    ::posix_spawn_file_actions_adddup2(&spawn.actions, STDERR_FILENO, STDOUT_FILENO);

  std::vector<std::string> own_words = words;
  std::vector<std::string> added = environment;
  std::vector<char*> variables = pointers_to(added);
  variables.pop_back();
  for (char** variable = environ; *variable != nullptr; ++variable)
    variables.push_back(*variable); // ours come first: where a name is there twice, the first counts
  variables.push_back(nullptr);
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, words.front().c_str(), &spawn.actions, &spawn.attributes,
                                   pointers_to(own_words).data(), variables.data());
  if (error != 0) {
    if (has_terminal)
      ::tcsetpgrp(STDIN_FILENO, ::getpgrp());
    return std::unexpected(error);
  }
  return ChildCommand(pid, has_terminal);
}

ChildCommand::ChildCommand(ChildCommand&& other) noexcept
    : pid_(other.pid_), has_terminal_(std::exchange(other.has_terminal_, false)), status_(other.status_) {}

ChildCommand::~ChildCommand() {
  if (has_terminal_)
    ::tcsetpgrp(STDIN_FILENO, ::getpgrp());
}

void ChildCommand::signal(int number) const noexcept {
  ::kill(-pid_, number);
}

bool ChildCommand::poll_end() noexcept {
  int status = 0;
  while (::waitpid(pid_, &status, WNOHANG | WUNTRACED) == pid_) {
    if (WIFSTOPPED(status)) {
      follow_stop();
      continue;
    }
    status_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return true;
  }
  return false;
}

void ChildCommand::follow_stop() noexcept {
  if (!has_terminal_)
    return; // somebody stopped it on purpose, and may continue it
  ::tcsetpgrp(STDIN_FILENO, ::getpgrp());
  ::raise(SIGSTOP);
  ::tcsetpgrp(STDIN_FILENO, pid_);
  signal(SIGCONT);
}

} // namespace stopvisor::tools
