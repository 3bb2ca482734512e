// SPDX-License-Identifier: Apache-2.0
// hold: runs a command while the guest is held.
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <system_error>

#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/stopvisor/child_command.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"

namespace stopvisor::tools {
namespace {

using Clock = std::chrono::steady_clock;
using vmm::Error;
using vmm::Status;

constexpr std::chrono::seconds kGrace{1}; // between SIGTERM and SIGKILL
constexpr int kNotStarted = 126;
constexpr int kNotFound = 127;

// Blocks the signals the wait takes through a descriptor, and those that would stop us at the terminal.
vmm::UniqueFd take_signals() {
  sigset_t taken;
  sigemptyset(&taken);
  for (const int number : {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT})
    sigaddset(&taken, number);
  sigset_t blocked = taken;
  sigaddset(&blocked, SIGTTOU);
  ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  return vmm::UniqueFd(::signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK));
}

// Sees a command through to its end.
class Watch {
public:
  Watch(ChildCommand& command, int signals, int connection, std::optional<Clock::time_point> until)
      : command_(command), signals_(signals), connection_(connection), next_(until) {}

  void until_end() {
    while (!command_.poll_end()) {
      std::array<pollfd, 2> entries{{{signals_, POLLIN, 0}, {lost_ ? -1 : connection_, POLLIN, 0}}};
      ::poll(entries.data(), entries.size(), milliseconds_left());
      pass_signals_on();
      lost_ = lost_ || entries[1].revents != 0; // nothing is asked, so it can only be the end
      if (next_ && Clock::now() >= *next_)
        end_command();
    }
  }
  [[nodiscard]] bool time_up() const { return stage_ != Stage::kRuns; }
  [[nodiscard]] bool vm_ended() const { return lost_; }

private:
  enum class Stage { kRuns, kAsked, kKilled };

  int milliseconds_left() const {
    if (!next_)
      return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next_ - Clock::now()).count();
    return int(std::clamp<long>(left, 0, 1'000'000));
  }

  void pass_signals_on() {
    signalfd_siginfo info{};
    while (::read(signals_, &info, sizeof info) == sizeof info)
      if (info.ssi_signo != SIGCHLD)
        command_.signal(int(info.ssi_signo));
  }

  void end_command() {
    switch (stage_) {
    case Stage::kRuns:
      command_.signal(SIGTERM);
      command_.signal(SIGCONT); // a stopped one takes its SIGTERM now
      stage_ = Stage::kAsked;
      next_ = Clock::now() + kGrace;
      return;
    case Stage::kAsked:
      command_.signal(SIGKILL);
      stage_ = Stage::kKilled;
      next_.reset();
      return;
    case Stage::kKilled:
      return;
    }
  }

  ChildCommand& command_;
  int signals_;
  int connection_;
  std::optional<Clock::time_point> next_; // when the next thing is to be done to the command
  Stage stage_ = Stage::kRuns;
  bool lost_ = false;
};

class HoldVerb final : public Verb {
public:
  const char* name() const noexcept override { return "hold"; }
  const char* summary() const noexcept override { return "Run a command while a VM is held"; }
  const char* details() const noexcept override {
    return "The VM is held before CMD begins, and let go when CMD ends, when this command ends in whatever way, "
           "or\n"
           "when --max is over. The exit status is CMD's (128 and the signal where one killed it); 4 where time "
           "was\n"
           "up: the guest goes on at once, CMD gets SIGTERM and a second later SIGKILL. 127: CMD was not found,\n"
           "126: it could not be started. CMD finds STOPVISOR_VM and STOPVISOR_SOCKET in its environment. With\n"
           "--json what CMD prints goes to stderr.\n\n"
           "Examples:\n"
           "  stopvisor hold vm1 --max 200ms -- lvcreate -s -n snap vg/disk\n"
           "  stopvisor hold vm1 -- sh -c 'stopvisor peek $STOPVISOR_VM gpa:0x200000 64'";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.rest("CMD", command_, 1, "The command and its arguments, after --");
    arguments.option("--max", max_, "DURATION", "Let go after this long, whatever CMD does");
    arguments.option("--timeout", timeout_, "DURATION", "How long to wait for the VM to be held (default 5s)");
  }
  std::expected<int, Error> run(bool json) override {
    const auto timeout = parse_timeout("hold", timeout_, std::chrono::seconds(5));
    if (!timeout)
      return std::unexpected(timeout.error());
    std::optional<std::chrono::milliseconds> max;
    if (max_) {
      const auto parsed = parse_max("hold", *max_);
      if (!parsed)
        return std::unexpected(parsed.error());
      max = *parsed;
    }
    auto client = Client::connect("hold", vm_);
    if (!client)
      return std::unexpected(client.error());
    client->set_patience(*timeout + std::chrono::seconds(5));
    return hold(*client, *timeout, max, json);
  }

private:
  std::expected<int, Error> hold(Client& client, std::chrono::milliseconds timeout,
                                 std::optional<std::chrono::milliseconds> max, bool json) {
    const vmm::UniqueFd signals = take_signals();
    const auto lease = client.lease(max, timeout);
    if (!lease)
      return std::unexpected(lease.error());
    const Clock::time_point begun = Clock::now();
    auto command = ChildCommand::start(
        command_, {"STOPVISOR_VM=" + client.vm_name(), "STOPVISOR_SOCKET=" + client.socket_path()}, json);
    if (!command)
      return std::unexpected(not_started(command.error()));
    Watch watch(*command, signals.get(), client.fd(),
                max ? std::optional(begun + *max) : std::optional<Clock::time_point>());
    watch.until_end();
    if (watch.vm_ended())
      return std::unexpected(Error{"hold", vm_, "the VM ended while the command ran", Status::kFailed});
    const auto ended = client.end_lease(*lease);
    // Without --max no time can be up: kBusy is a VM that does not answer then.
    if (max && (watch.time_up() || (!ended && ended.error().status == Status::kBusy)))
      return std::unexpected(
          Error{"hold", vm_,
                "time was up after " + human_duration(*max) +
                    (watch.time_up() ? "; the command was ended" : "; the command had not ended"),
                Status::kBusy});
    if (!ended)
      return std::unexpected(ended.error());
    if (json) {
      const auto held = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begun).count();
      const nlohmann::ordered_json document = {{"vm", vm_}, {"status", command->status()}, {"held_ms", held}};
      print_text(document.dump(2) + "\n");
    }
    return command->status();
  }

  Error not_started(int error) const {
    return {"hold", command_.front(), std::generic_category().message(error) + "; the VM was let go",
            // NOLINTNEXTLINE(clang-analyzer-optin.core.EnumCastOutOfRange): as env(1) and the shells have it
            Status(error == ENOENT ? kNotFound : kNotStarted)};
  }

  std::string vm_;
  std::vector<std::string> command_;
  std::optional<std::string> max_;
  std::optional<std::string> timeout_;
};

} // namespace

std::unique_ptr<Verb> make_hold() {
  return std::make_unique<HoldVerb>();
}

} // namespace stopvisor::tools
