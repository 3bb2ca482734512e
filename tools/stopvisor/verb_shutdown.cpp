// SPDX-License-Identifier: Apache-2.0
// shutdown.
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"

namespace stopvisor::tools {
namespace {

using Clock = std::chrono::steady_clock;
using vmm::Error;
using vmm::Status;

// Waits until `fd` is readable. RETURNS: false at `deadline`.
bool wait_readable(int fd, Clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
    const int ready = ::poll(&entry, 1, int(std::max<long>(left, 0)));
    if (ready > 0)
      return true;
    if (ready == 0 || errno != EINTR)
      return false;
  }
}

class ShutdownVerb final : public Verb {
public:
  const char* name() const noexcept override { return "shutdown"; }
  const char* summary() const noexcept override { return "Press a VM's power button and wait for its end"; }
  const char* details() const noexcept override {
    return "The guest decides what the power button does. Where the VM still runs after --timeout the exit status\n"
           "is 4. With --now the VM is ended without asking the guest. With --ctrl-alt-del these keys are pressed\n"
           "instead, on which most guests restart: the command does not wait then.\n\n"
           "Examples:\n  stopvisor shutdown vm1\n  stopvisor shutdown vm1 --now";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.flag("--now", now_, "End the VM without asking the guest");
    arguments.flag("--ctrl-alt-del", keys_, "Press Ctrl-Alt-Del, and return at once");
    arguments.option("--timeout", timeout_, "DURATION", "How long to wait for the end (default 10s)");
  }
  std::expected<int, Error> run(bool json) override {
    if (keys_ && (now_ || timeout_))
      return std::unexpected(
          Error{"shutdown", "",
                std::string("--ctrl-alt-del and ") + (now_ ? "--now" : "--timeout") + " exclude each other",
                Status::kUsage});
    const auto timeout = parse_timeout("shutdown", timeout_, std::chrono::seconds(10));
    if (!timeout)
      return std::unexpected(timeout.error());
    const Clock::time_point deadline = Clock::now() + *timeout;
    auto client = Client::connect("shutdown", vm_);
    if (!client)
      return std::unexpected(client.error());
    // The process, not the connection, tells when the name is free again; it is alive while it answers us.
    const pid_t pid = client->vm_pid();
    const vmm::UniqueFd process(pid > 0 ? int(::syscall(SYS_pidfd_open, pid, 0)) : -1);
    const auto answer = client->request("POST", "/v1/shutdown",
                                        now_    ? R"({"now":true})"
                                        : keys_ ? R"({"ctrl_alt_del":true})"
                                                : R"({"now":false})");
    if (!answer)
      return std::unexpected(answer.error());
    if (!keys_ && !wait_readable(process ? process.get() : client->fd(), deadline))
      return std::unexpected(still_running(*client, *timeout));
    if (json)
      print_vm_document(vm_, *answer);
    return 0;
  }

private:
  Error still_running(Client& client, std::chrono::milliseconds timeout) const {
    std::string reason = "still runs after " + human_duration(timeout);
    const auto answer = client.request("GET", "/v1/status");
    const auto status = answer ? nlohmann::json::parse(*answer, nullptr, false) : nlohmann::json();
    if (status.is_object() && status.value("state", "") == "held")
      reason += ": the VM is held; let it go, or use --now";
    else
      reason += "; the guest may ignore its power button, --now ends it";
    return {"shutdown", vm_, reason, Status::kBusy};
  }

  std::string vm_;
  bool now_ = false;
  bool keys_ = false;
  std::optional<std::string> timeout_;
};

} // namespace

std::unique_ptr<Verb> make_shutdown() {
  return std::make_unique<ShutdownVerb>();
}

} // namespace stopvisor::tools
