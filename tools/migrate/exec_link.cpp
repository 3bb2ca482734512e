// SPDX-License-Identifier: Apache-2.0
// A socket, and no pipes: a write to it raises no SIGPIPE, and one descriptor is both directions.
#include "tools/migrate/exec_link.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <string>
#include <utility>

#include "tools/migrate/sockets.h"
#include "tools/migrate/waiting.h"
#include "vmm/spawn_arguments.h"

namespace stopvisor::migrate {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kTimeToSay{1'000}; // between its end of the stream and its exit status
constexpr milliseconds kTimeToEnd{2'000};
constexpr milliseconds kTimeToDie{1'000};

// RETURNS: an errno value, 0 where it runs.
int spawn(const std::string& command, int socket, pid_t& pid) {
  vmm::SpawnArguments with;
  with.lead_own_group();
  ::posix_spawn_file_actions_adddup2(&with.actions, socket, STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&with.actions, socket, STDOUT_FILENO);
  ::posix_spawn_file_actions_addclosefrom_np(&with.actions, STDERR_FILENO + 1); // what we inherited is not its
  std::string shell = "/bin/sh";
  std::string option = "-c";
  std::string line = command;
  const std::array<char*, 4> words{shell.data(), option.data(), line.data(), nullptr};
  return ::posix_spawn(&pid, shell.c_str(), &with.actions, &with.attributes, words.data(), environ);
}

class ExecLink final : public Link {
public:
  ExecLink(std::string operation, std::string name, vmm::UniqueFd socket, pid_t pid)
      : Link(std::move(operation), std::move(name), std::move(socket)), pid_(pid),
        process_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
  ~ExecLink() override {
    hang_up();
    if (left_alone_) // whoever takes our children in, when we end, waits for it
      return;
    if (!ended_within(is_cut() ? milliseconds(0) : kTimeToEnd, -1)) {
      ::kill(-pid_, SIGTERM);
      if (!ended_within(kTimeToDie, -1))
        ::kill(-pid_, SIGKILL);
    }
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  ExecLink(const ExecLink&) = delete;
  ExecLink& operator=(const ExecLink&) = delete;

  void leave_alone() noexcept override { left_alone_ = true; }

protected:
  // It is not reaped before the destructor, so two threads may look.
  std::string of_its_end() override {
    siginfo_t about{};
    if (!ended_within(kTimeToSay, cut_event()) ||
        ::waitid(P_PID, static_cast<id_t>(pid_), &about, WEXITED | WNOWAIT | WNOHANG) != 0 || about.si_pid != pid_)
      return " (its command goes on)";
    return (about.si_code == CLD_EXITED ? " (its command ended with status "
                                        : " (its command was ended by signal ") +
           std::to_string(about.si_status) + ")";
  }

private:
  // `stop`: an eventfd that ends the wait; -1: none.
  [[nodiscard]] bool ended_within(milliseconds limit, int stop) const noexcept {
    return wait_on(process_.get(), POLLIN, stop, after(limit)) == Waited::kReady;
  }

  std::atomic<bool> left_alone_ = false;
  pid_t pid_;
  vmm::UniqueFd process_; // a pidfd, readable once the process has ended
};

} // namespace

std::expected<std::unique_ptr<Link>, vmm::Error> start_command(std::string_view operation, const Address& address) {
  std::array<int, 2> ends{-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return std::unexpected(vmm::system_error(operation, address.text, errno));
  vmm::UniqueFd ours(ends[0]);
  const vmm::UniqueFd its(ends[1]);
  tune(ours.get());
  tune(its.get());
  pid_t pid = 0;
  if (const int fault = spawn(address.command, its.get(), pid); fault != 0) {
    vmm::Error error = vmm::system_error(operation, address.text, fault);
    error.reason = "its command cannot be started: " + error.reason;
    return std::unexpected(std::move(error));
  }
  return std::make_unique<ExecLink>(std::string(operation), address.text, std::move(ours), pid);
}

} // namespace stopvisor::migrate
