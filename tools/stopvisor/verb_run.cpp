// SPDX-License-Identifier: Apache-2.0
// run: starts a VM, in the foreground or (--detach) in the background.
#include <unistd.h>

#include <optional>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "tools/snapshot/vm_restore.h"
#include "tools/stopvisor/detach.h"
#include "tools/stopvisor/incoming_options.h"
#include "tools/stopvisor/incoming_process.h"
#include "tools/stopvisor/machine_options.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/restore_options.h"
#include "tools/stopvisor/run_options.h"
#include "tools/stopvisor/verb.h"
#include "tools/stopvisor/vm_process.h"
#include "vmm/control/socket_place.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

void set_up_log() {
  auto logger = spdlog::stderr_logger_mt("stopvisor");
  logger->set_pattern("stopvisor: %H:%M:%S.%e %l: %v");
  spdlog::set_default_logger(std::move(logger));
}

const char* name_of(vmm::EndKind kind) {
  switch (kind) {
  case vmm::EndKind::kPowerOff:
    return "power-off";
  case vmm::EndKind::kRequested:
    return "requested";
  case vmm::EndKind::kCrash:
    return "crash";
  case vmm::EndKind::kTripleFault:
    return "triple-fault";
  case vmm::EndKind::kVmmError:
    return "vmm-error";
  case vmm::EndKind::kMigrated:
    return "migrated";
  }
  return "unknown";
}

// The exit status of a VM that ran; an error where its guest did not end well.
std::expected<int, Error> status_of(const VmProcessEnd& ended) {
  switch (ended.end.kind) {
  case vmm::EndKind::kPowerOff:
  case vmm::EndKind::kMigrated:
    return 0;
  case vmm::EndKind::kRequested:
    return ended.signal == 0 ? 0 : 128 + ended.signal;
  case vmm::EndKind::kCrash:
  case vmm::EndKind::kTripleFault:
  case vmm::EndKind::kVmmError:
    return std::unexpected(Error{"run", ended.name, ended.end.message, Status::kFailed});
  }
  return 1;
}

class RunVerb final : public Verb {
public:
  const char* name() const noexcept override { return "run"; }
  const char* summary() const noexcept override { return "Start a VM"; }
  const char* details() const noexcept override {
    return "Without --kernel the built-in probe guest is started; --cmdline chooses its scenarios. In the\n"
           "foreground the VM's serial port is the terminal (the guest gets Ctrl-C too; Ctrl-A x ends the VM). "
           "The\n"
           "exit status is 0 when the guest switched itself off or 'shutdown --now' ended it, 1 when it crashed,\n"
           "128+N when signal N (SIGINT, SIGTERM, SIGHUP, SIGQUIT) ended it. With --detach the command returns "
           "when the VM's control\n"
           "socket answers; its messages go to NAME.log beside the socket, which stays when the VM fails.\n\n"
           "Examples:\n"
           "  stopvisor run --cpus 4\n"
           "  stopvisor run --name vm1 --cpus 4 --memory 1G --detach\n"
           "  stopvisor run --kernel vmlinux --initrd initrd.img --cmdline 'console=ttyS0'\n"
           "  stopvisor status vm1 --dtb > vm1.dtb; stopvisor run --name vm2 --machine vm1.dtb\n"
           "  stopvisor snapshot create vm1 monday; stopvisor run --name vm2 --restore monday --detach\n"
           "  stopvisor run --name vm2 --incoming unix:/run/vm2.in --detach; stopvisor migrate vm1 "
           "unix:/run/vm2.in";
  }
  void declare(Arguments& arguments) override { options_.declare(arguments); }
  std::expected<int, Error> run(bool json) override {
    if (options_.incoming)
      return run_incoming_guest(json);
    if (auto fine = check_nothing_for_incoming(options_); !fine)
      return std::unexpected(fine.error());
    auto config = make_config(json);
    if (!config)
      return std::unexpected(config.error());
    return options_.detach ? run_detached(std::move(*config), json) : run_here(std::move(*config), json);
  }

private:
  std::expected<vmm::VmConfig, Error> make_config(bool json) {
    auto config = options_.restore ? restored_machine() : fresh_machine();
    if (!config)
      return config;
    if (auto fine = options_.check_name(); !fine)
      return std::unexpected(fine.error());
    config->name = options_.name.value_or(config->name);
    config->start_held = options_.paused;
    auto serial = options_.serial_choice(json);
    if (!serial)
      return std::unexpected(serial.error());
    config->serial = serial->target;
    config->serial_path = std::move(serial->path);
    return config;
  }

  [[nodiscard]] std::expected<vmm::VmConfig, Error> fresh_machine() const {
    if (auto fine = check_nothing_for_restore(options_); !fine)
      return std::unexpected(fine.error());
    return new_machine(options_);
  }

  std::expected<vmm::VmConfig, Error> restored_machine() {
    auto opened = open_snapshot(options_);
    if (!opened)
      return std::unexpected(opened.error());
    restoration_ = *std::move(opened);
    vmm::VmConfig config = restoration_->config();
    if (!vmm::check_vm_name(config.name)) // of a stranger's: with --name, or a generated one
      config.name.clear();
    return config;
  }

  std::expected<int, Error> run_incoming_guest(bool json) const {
    const auto order = incoming_order(options_, json);
    if (!order)
      return std::unexpected(order.error());
    if (options_.detach) {
      const auto started = detach([&](Foreground& foreground) { return wait_behind(*order, foreground); });
      if (!started)
        return std::unexpected(started.error());
      if (json)
        print_text(
            Json{{"vm", options_.name.value_or("")}, {"pid", started->pid}, {"incoming", started->word}}.dump(2) +
            "\n");
      else
        print_text(options_.name.value_or("") + ": waiting at " + started->word + ", pid " +
                   std::to_string(started->pid) + "\n");
      return 0;
    }
    set_up_log();
    return finish(run_incoming(*order, [](const vmm::ControlPlace*, const std::string&) {}), json);
  }

  // CONTEXT: the background process. RETURNS: its exit status.
  static int wait_behind(const IncomingOrder& order, Foreground& foreground) {
    set_up_log();
    std::string log;
    const auto ended = run_incoming(order, [&](const vmm::ControlPlace* place, const std::string& where) {
      if (place != nullptr && log_to(place->log_path()))
        log = place->log_path();
      (void)!::chdir("/"); // keeps no file system busy
      foreground.tell_ready(where);
    });
    return finish_behind(ended, log, foreground);
  }

  static std::expected<int, Error> finish(const std::expected<VmProcessEnd, Error>& ended, bool json) {
    if (!ended)
      return std::unexpected(ended.error());
    const auto status = status_of(*ended);
    if (status && json) {
      Json document = {{"vm", ended->name}, {"end", name_of(ended->end.kind)}, {"status", *status}};
      if (ended->end.kind == vmm::EndKind::kMigrated)
        document["to"] = ended->end.message;
      print_text(document.dump(2) + "\n");
    }
    return status;
  }

  // RETURNS: the exit status of a process in the background.
  static int finish_behind(const std::expected<VmProcessEnd, Error>& ended, const std::string& log,
                           Foreground& foreground) {
    if (!ended) {
      if (foreground.told()) // nobody waits for it any more
        return print_error(ended.error(), "run", false);
      foreground.tell_error(ended.error());
      return int(ended.error().status);
    }
    const auto status = status_of(*ended);
    if (!status)
      return print_error(status.error(), "run", false);
    if (!log.empty())
      ::unlink(log.c_str());
    return *status;
  }

  std::expected<int, Error> run_here(vmm::VmConfig config, bool json) {
    set_up_log();
    const bool has_terminal = config.serial == vmm::SerialTarget::kTerminal && ::isatty(STDIN_FILENO) == 1;
    const auto ended = run_vm(std::move(config), restoration(), [has_terminal](const vmm::ControlPlace& place) {
      if (has_terminal)
        spdlog::info("{}: the guest has the terminal, Ctrl-C included; Ctrl-A x ends the VM", place.name());
    });
    return finish(ended, json);
  }

  std::expected<int, Error> run_detached(vmm::VmConfig config, bool json) {
    const auto started = detach([&](Foreground& foreground) { return run_behind(std::move(config), foreground); });
    if (!started)
      return std::unexpected(started.error());
    if (json)
      print_text(Json{{"vm", started->word}, {"pid", started->pid}}.dump(2) + "\n");
    else
      print_text(started->word + ": running, pid " + std::to_string(started->pid) + "\n");
    return 0;
  }

  // CONTEXT: the background process. RETURNS: its exit status.
  int run_behind(vmm::VmConfig config, Foreground& foreground) {
    set_up_log();
    std::string log;
    const auto ended = run_vm(std::move(config), restoration(), [&](const vmm::ControlPlace& place) {
      if (log_to(place.log_path()))
        log = place.log_path();
      (void)!::chdir("/"); // keeps no file system busy
      foreground.tell_ready(place.name());
    });
    return finish_behind(ended, log, foreground);
  }

  [[nodiscard]] snapshot::Restoration* restoration() noexcept { return restoration_ ? &*restoration_ : nullptr; }

  RunOptions options_;
  std::optional<snapshot::Restoration> restoration_; // with --restore
};

} // namespace

std::unique_ptr<Verb> make_run() {
  return std::make_unique<RunVerb>();
}

} // namespace stopvisor::tools
