// SPDX-License-Identifier: Apache-2.0
// run: starts a VM, in the foreground or (--detach) in the background.
#include <unistd.h>

#include <charconv>

#include <nlohmann/json.hpp>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "tools/stopvisor/detach.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "tools/stopvisor/vm_process.h"
#include "vmm/units.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

Error usage(const char* option, std::string_view value, std::string reason) {
  return {std::string("run: ") + option, std::string(value), std::move(reason), Status::kUsage};
}

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
  }
  return "unknown";
}

// The exit status of a VM that ran; an error where its guest did not end well.
std::expected<int, Error> status_of(const VmProcessEnd& ended) {
  switch (ended.end.kind) {
  case vmm::EndKind::kPowerOff:
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
           "  stopvisor run --kernel vmlinux --initrd initrd.img --cmdline 'console=ttyS0'";
  }
  void declare(Arguments& arguments) override {
    arguments.option("--name", name_, "NAME", "Name of the VM (default: vm1, vm2, ...)");
    arguments.option("--cpus", cpus_, "N", "Number of vCPUs (default 1)");
    arguments.option("--max-cpus", max_cpus_, "N", "Number of vCPUs it may grow to (default 32, or --cpus)");
    arguments.option("--memory", memory_, "SIZE", "Guest memory, with K, M or G (default 256M)");
    arguments.option("--memory-backing", backing_, "KIND", "anon, memfd or hugetlb (default anon)");
    arguments.option("--kernel", kernel_, "FILE", "A PVH ELF to boot (default: the probe guest)");
    arguments.option("--initrd", initrd_, "FILE", "Its initial RAM disk");
    arguments.option("--cmdline", cmdline_, "STRING", "Its command line");
    arguments.option("--serial", serial_, "WHERE",
                     "stdio, none or file:PATH (default stdio; none with --detach or --json)");
    arguments.flag("--paused", paused_, "Start held; 'stopvisor resume' lets it go");
    arguments.flag("--detach", detach_, "Run in the background");
  }
  std::expected<int, Error> run(bool json) override {
    auto config = make_config(json);
    if (!config)
      return std::unexpected(config.error());
    return detach_ ? run_detached(std::move(*config), json) : run_here(std::move(*config), json);
  }

private:
  std::expected<vmm::VmConfig, Error> make_config(bool json) const {
    vmm::VmConfig config;
    if (name_) {
      if (auto fine = vmm::check_vm_name(*name_); !fine)
        return std::unexpected(usage("--name", *name_, fine.error().reason));
      config.name = *name_;
    }
    if (auto fine = set_count("--cpus", cpus_, config.cpus); !fine)
      return std::unexpected(fine.error());
    if (auto fine = set_count("--max-cpus", max_cpus_, config.max_cpus); !fine)
      return std::unexpected(fine.error());
    if (memory_) {
      const auto bytes = vmm::parse_size("run: --memory", *memory_);
      if (!bytes)
        return std::unexpected(bytes.error());
      config.memory_bytes = *bytes;
    }
    config.kernel = kernel_.value_or("");
    config.initrd = initrd_.value_or("");
    config.cmdline = cmdline_.value_or("");
    config.start_held = paused_;
    if (kernel_ && kernel_->empty())
      return std::unexpected(usage("--kernel", "", "needs the name of a file"));
    if (auto fine = set_backing(config); !fine)
      return std::unexpected(fine.error());
    if (auto fine = set_serial(config, json); !fine)
      return std::unexpected(fine.error());
    return config;
  }

  static std::expected<void, Error> set_count(const char* option, const std::optional<std::string>& text,
                                              uint32_t& to) {
    if (!text)
      return {};
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), to);
    if (error != std::errc{} || end != text->data() + text->size() || to == 0)
      return std::unexpected(usage(option, *text, "must be a number of vCPUs, 1 or more"));
    return {};
  }

  std::expected<void, Error> set_backing(vmm::VmConfig& config) const {
    const std::string kind = backing_.value_or("anon");
    if (kind == "anon")
      config.backing = vmm::MemoryBacking::kAnonymous;
    else if (kind == "memfd")
      config.backing = vmm::MemoryBacking::kMemfd;
    else if (kind == "hugetlb")
      config.backing = vmm::MemoryBacking::kHugetlb;
    else
      return std::unexpected(usage("--memory-backing", kind, "must be anon, memfd or hugetlb"));
    return {};
  }

  std::expected<void, Error> set_serial(vmm::VmConfig& config, bool json) const {
    static constexpr std::string_view kFilePrefix = "file:";
    const std::string where = serial_.value_or(detach_ || json ? "none" : "stdio");
    if (where == "none") {
      config.serial = vmm::SerialTarget::kNone;
    } else if (where == "stdio") {
      if (detach_ || json)
        return std::unexpected(usage(
            "--serial", where, detach_ ? "there is no terminal with --detach" : "--json needs stdout for itself"));
      config.serial = vmm::SerialTarget::kTerminal;
    } else if (where.starts_with(kFilePrefix) && where.size() > kFilePrefix.size()) {
      config.serial = vmm::SerialTarget::kFile;
      config.serial_path = where.substr(kFilePrefix.size());
    } else {
      return std::unexpected(usage("--serial", where, "must be stdio, none or file:PATH"));
    }
    return {};
  }

  static std::expected<int, Error> run_here(vmm::VmConfig config, bool json) {
    set_up_log();
    const bool has_terminal = config.serial == vmm::SerialTarget::kTerminal && ::isatty(STDIN_FILENO) == 1;
    const auto ended = run_vm(std::move(config), [has_terminal](const vmm::ControlPlace& place) {
      if (has_terminal)
        spdlog::info("{}: the guest has the terminal, Ctrl-C included; Ctrl-A x ends the VM", place.name());
    });
    if (!ended)
      return std::unexpected(ended.error());
    const auto status = status_of(*ended);
    if (status && json)
      print_text(Json{{"vm", ended->name}, {"end", name_of(ended->end.kind)}, {"status", *status}}.dump(2) + "\n");
    return status;
  }

  static std::expected<int, Error> run_detached(vmm::VmConfig config, bool json) {
    const auto started =
        detach([&config](Foreground& foreground) { return run_behind(std::move(config), foreground); });
    if (!started)
      return std::unexpected(started.error());
    if (json)
      print_text(Json{{"vm", started->word}, {"pid", started->pid}}.dump(2) + "\n");
    else
      print_text(started->word + ": running, pid " + std::to_string(started->pid) + "\n");
    return 0;
  }

  // CONTEXT: the background process. RETURNS: its exit status.
  static int run_behind(vmm::VmConfig config, Foreground& foreground) {
    set_up_log();
    std::string log;
    const auto ended = run_vm(std::move(config), [&](const vmm::ControlPlace& place) {
      if (log_to(place.log_path()))
        log = place.log_path();
      (void)!::chdir("/"); // keeps no file system busy
      foreground.tell_ready(place.name());
    });
    if (!ended) {
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

  std::optional<std::string> name_;
  std::optional<std::string> cpus_;
  std::optional<std::string> max_cpus_;
  std::optional<std::string> memory_;
  std::optional<std::string> backing_;
  std::optional<std::string> kernel_;
  std::optional<std::string> initrd_;
  std::optional<std::string> cmdline_;
  std::optional<std::string> serial_;
  bool paused_ = false;
  bool detach_ = false;
};

} // namespace

std::unique_ptr<Verb> make_run() {
  return std::make_unique<RunVerb>();
}

} // namespace stopvisor::tools
