// SPDX-License-Identifier: Apache-2.0
// console: attaches the terminal to a VM's serial port.
#include <fcntl.h>
#include <unistd.h>

#include <csignal>

#include <nlohmann/json.hpp>

#include "tools/client/client.h"
#include "tools/stopvisor/console_link.h"
#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "vmm/terminal.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

class ConsoleVerb final : public Verb {
public:
  const char* name() const noexcept override { return "console"; }
  const char* summary() const noexcept override { return "Attach the terminal to a VM's serial port"; }
  const char* details() const noexcept override {
    return "Shows the last 64 KiB the guest printed and what follows, and gives the guest what is typed, Ctrl-C\n"
           "included. Ctrl-A x ends the console, not the VM; Ctrl-A Ctrl-A sends one Ctrl-A. From a pipe or a "
           "file\n"
           "every byte goes to the guest as it is; when that ends, the output goes on until the VM ends (with "
           "status\n"
           "0). Several may be attached at once, and one that is slow delays nobody: it loses output, and is told\n"
           "how much.\n\n"
           "Examples:\n"
           "  stopvisor console vm1\n"
           "  echo poweroff | stopvisor console vm1\n"
           "  stopvisor console vm1 --no-input | grep --line-buffered panic\n"
           "  stopvisor console vm1 --log > boot.txt";
  }
  void declare(Arguments& arguments) override {
    arguments.positional("VM", vm_, "Name of the VM");
    arguments.flag("--no-input", no_input_, "Only show what the guest prints, until the VM ends");
    arguments.flag("--log", log_, "Print what the guest printed up to now (64 KiB at most), and end");
  }
  std::expected<int, Error> run(bool json) override {
    if (json && !log_)
      return std::unexpected(Error{"console", "", "--json goes with --log alone", Status::kUsage});
    if (log_ && no_input_) // --log never reads input: whoever gives both expects more of one of them
      return std::unexpected(Error{"console", "", "--log and --no-input exclude each other", Status::kUsage});
    auto client = Client::connect("console", vm_);
    if (!client)
      return std::unexpected(client.error());
    return log_ ? print_log(*client, json) : attach(*client);
  }

private:
  std::expected<int, Error> print_log(Client& client, bool json) const {
    const auto log = client.request("GET", "/v1/console");
    if (!log)
      return std::unexpected(log.error());
    if (json)
      print_vm_document(vm_, Json{{"log", *log}}.dump(-1, ' ', false, Json::error_handler_t::replace));
    else
      print_text(*log);
    return 0;
  }

  std::expected<int, Error> attach(Client& client) const {
    ::signal(SIGPIPE, SIG_IGN); // a reader of ours that is gone is an error value: the terminal must be given back
    const auto early = client.upgrade("/v1/console", "stopvisor-console");
    if (!early)
      return std::unexpected(early.error());
    const bool has_input = !no_input_ && ::fcntl(STDIN_FILENO, F_GETFD) >= 0;
    std::expected<ConsoleLink::End, Error> end = ConsoleLink::End::kQuit;
    {
      auto terminal = vmm::RawTerminal::enter(has_input ? STDIN_FILENO : -1);
      if (!terminal)
        return std::unexpected(terminal.error());
      if (terminal->active())
        print_note(vm_ + ": attached; Ctrl-A x ends the console, not the VM");
      ConsoleLink link(client.fd(), *early, has_input ? STDIN_FILENO : -1, STDOUT_FILENO);
      end = link.run();
    }
    if (!end)
      return std::unexpected(end.error());
    print_note(vm_ + (*end == ConsoleLink::End::kHungUp ? ": the VM has ended" : ": detached, the VM goes on"));
    return 0;
  }

  std::string vm_;
  bool no_input_ = false;
  bool log_ = false;
};

} // namespace

std::unique_ptr<Verb> make_console() {
  return std::make_unique<ConsoleVerb>();
}

} // namespace stopvisor::tools
