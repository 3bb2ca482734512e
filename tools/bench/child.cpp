// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/spawn_arguments.h"

namespace stopvisor::tools {

std::expected<Child, vmm::Error> Child::start(const std::vector<std::string>& command) {
  std::vector<char*> arguments;
  arguments.reserve(command.size() + 1);
  for (const std::string& word : command)
    arguments.push_back(const_cast<char*>(word.c_str())); // posix_spawn's prototype; it writes nothing
  arguments.push_back(nullptr);
  vmm::SpawnArguments spawn;
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    posix_spawn_file_actions_addopen(&spawn.actions, stream, "/dev/null",
                                     stream == STDIN_FILENO ? O_RDONLY : O_WRONLY, 0);
  pid_t pid = 0;
  const int error = posix_spawnp(&pid, arguments[0], &spawn.actions, &spawn.attributes, arguments.data(), environ);
  if (error != 0)
    return std::unexpected(vmm::system_error("start", command.front(), error));
  return Child(pid);
}

Child::~Child() {
  if (pid_ == 0)
    return;
  kill(pid_, SIGTERM);
  siginfo_t info{};
  for (int waited_ms = 0; waited_ms < 5000; waited_ms += 10) {
    if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG) != 0 || info.si_pid != 0)
      return;
    usleep(10'000);
  }
  kill(pid_, SIGKILL);
  waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED);
}

bool Child::alive() noexcept {
  siginfo_t info{};
  return pid_ != 0 && waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

} // namespace stopvisor::tools
