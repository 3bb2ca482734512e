// SPDX-License-Identifier: Apache-2.0
// run: starts a VM, in the foreground or (--detach) in the background.
#include <unistd.h>

#include <array>
#include <charconv>
#include <filesystem>
#include <utility>

#include <nlohmann/json.hpp>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "tools/snapshot/vm_restore.h"
#include "tools/stopvisor/detach.h"
#include "tools/stopvisor/disk_option.h"
#include "tools/stopvisor/incoming_process.h"
#include "tools/stopvisor/net_option.h"
#include "tools/stopvisor/output.h"
#include "tools/stopvisor/verb.h"
#include "tools/stopvisor/vm_process.h"
#include "vmm/machine_file.h"
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
  void declare(Arguments& arguments) override {
    arguments.option("--name", name_, "NAME", "Name of the VM (default: vm1, vm2, ...)");
    arguments.option("--machine", machine_, "FILE",
                     "A device tree (.dtb or .dts) that describes the machine, in place of the next options");
    arguments.option("--cpus", cpus_, "N", "Number of vCPUs (default 1)");
    arguments.option("--max-cpus", max_cpus_, "N", "Number of vCPUs it may grow to (default 32, or --cpus)");
    arguments.option("--memory", memory_, "SIZE", "Guest memory, as 512M or 1.5G (default 256M)");
    arguments.option("--memory-backing", backing_, "KIND", "anon, memfd or hugetlb (default anon)");
    arguments.option("--kernel", kernel_, "FILE", "A Linux bzImage or PVH ELF to boot (default: the probe guest)");
    arguments.option("--initrd", initrd_, "FILE", "Its initial RAM disk");
    arguments.option("--cmdline", cmdline_, "STRING", "Its command line");
    arguments.options("--disk", disks_, "FILE[,ro]",
                      "A disk: a raw image or a block device, ro: only to be read; several make several. With "
                      "--restore N=FILE: the image of disk N of the snapshot (0: the first), a new file where the "
                      "snapshot has it");
    arguments.options("--net", nets_, "tap=IF[,mac=ADDRESS]",
                      "A network device on the host's tap IF; several make several");
    arguments.option("--serial", serial_, "WHERE",
                     "stdio, none or file:PATH (default stdio; none with --detach or --json)");
    arguments.option("--restore", restore_, "DIR", "Go on from a snapshot, which describes the whole machine");
    arguments.option("--key", key_, "FILE", "The key the snapshot is sealed with");
    arguments.option("--expect-id", expect_id_, "ID",
                     "With --restore: only this snapshot, as 'snapshot info' shows its id");
    arguments.flag("--disks-as-they-are", disks_as_they_are_,
                   "With --restore: go on also with images that were written since the snapshot");
    arguments.option("--verify", verify_, "WHEN",
                     "Check memory at the start, or each MiB on touch and so start at once (default start)");
    arguments.flag("--prefault", prefault_, "Start at once, and bring in memory while it runs (a job of the VM)");
    arguments.option("--clock", clock_, "WHICH",
                     "The wall clock the guest is told: resume, from the snapshot's moment on, or host (default "
                     "resume)");
    arguments.flag("--share", share_, "Map memory from the snapshot's file, so that clones share its pages");
    arguments.option("--incoming", incoming_, "URI",
                     "Wait for a guest that comes by migration: unix:PATH, tcp://HOST:PORT, fd:N or stdio:");
    arguments.flag(
        "--insecure", insecure_,
        "With --incoming: also take one over plain TCP from another host, which anybody between can read "
        "and change");
    arguments.option(
        "--keep", keep_, "DURATION",
        "With --incoming: how long a guest that is ready waits for a source that was lost (default 300s)");
    arguments.flag("--paused", paused_, "Start held; 'stopvisor resume' lets it go");
    arguments.flag("--detach", detach_, "Run in the background");
  }
  std::expected<int, Error> run(bool json) override {
    if (incoming_)
      return run_incoming_guest(json);
    for (const auto& [option, given] : {std::pair{"--insecure", insecure_}, std::pair{"--keep", keep_.has_value()}})
      if (given)
        return std::unexpected(usage(option, "", "goes with --incoming"));
    auto config = make_config(json);
    if (!config)
      return std::unexpected(config.error());
    return detach_ ? run_detached(std::move(*config), json) : run_here(std::move(*config), json);
  }

private:
  std::expected<vmm::VmConfig, Error> make_config(bool json) {
    for (const auto& [option, given] :
         std::array<std::pair<const char*, bool>, 7>{{{"--key", key_.has_value()},
                                                      {"--expect-id", expect_id_.has_value()},
                                                      {"--disks-as-they-are", disks_as_they_are_},
                                                      {"--verify", verify_.has_value()},
                                                      {"--clock", clock_.has_value()},
                                                      {"--prefault", prefault_},
                                                      {"--share", share_}}})
      if (given && !restore_)
        return std::unexpected(usage(option, "", "goes with --restore"));
    auto config = restore_ ? open_snapshot() : machine_ ? read_machine() : make_machine();
    if (!config)
      return config;
    if (name_) {
      if (auto fine = vmm::check_vm_name(*name_); !fine)
        return std::unexpected(usage("--name", *name_, fine.error().reason));
      config->name = *name_;
    }
    config->start_held = paused_;
    if (auto fine = set_serial(*config, json); !fine)
      return std::unexpected(fine.error());
    return config;
  }

  std::expected<vmm::VmConfig, Error> open_snapshot() {
    if (machine_)
      return std::unexpected(usage("--machine", "", "the snapshot of --restore describes the whole machine"));
    if (auto fine = check_alone("the snapshot of --restore describes the whole machine, this too"); !fine)
      return std::unexpected(fine.error());
    snapshot::RestoreOptions options{.directory = restore_.value_or("")};
    if (auto fine = set_memory(options); !fine)
      return std::unexpected(fine.error());
    if (clock_ && *clock_ != "resume" && *clock_ != "host")
      return std::unexpected(usage("--clock", *clock_, "must be resume or host"));
    options.wall_clock = clock_ == "host" ? vmm::WallClock::kHost : vmm::WallClock::kResume;
    options.disks.as_they_are = disks_as_they_are_;
    for (const std::string& text : disks_) {
      const auto place = parse_disk_place(text);
      if (!place)
        return std::unexpected(place.error());
      if (!options.disks.places.insert(*place).second)
        return std::unexpected(usage("--disk", text, "this disk has a place already"));
    }
    if (key_) {
      const auto key = snapshot::Key::read("run: --key", *key_);
      if (!key)
        return std::unexpected(key.error());
      options.key = *key;
    }
    if (expect_id_) {
      const auto id = snapshot::parse_id("run: --expect-id", *expect_id_);
      if (!id)
        return std::unexpected(id.error());
      options.expected = *id;
    }
    auto opened = snapshot::Restoration::open(options);
    if (!opened)
      return std::unexpected(opened.error());
    restoration_ = *std::move(opened);
    vmm::VmConfig config = restoration_->config();
    if (vmm::check_vm_name(config.name)) // of a stranger's: with --name, or a generated one
      return config;
    config.name.clear();
    return config;
  }

  // How it gets its memory.
  std::expected<void, Error> set_memory(snapshot::RestoreOptions& options) const {
    const std::string verify = verify_.value_or(prefault_ ? "touch" : "start");
    if (verify != "start" && verify != "touch")
      return std::unexpected(usage("--verify", verify, "must be start or touch"));
    if (prefault_ && verify == "start")
      return std::unexpected(
          usage("--prefault", "", "goes with --verify touch: else all is there before the start"));
    if (share_ && verify == "touch")
      return std::unexpected(usage("--share", "", "goes with --verify start: what is checked on touch is copied"));
    if (share_ && backing_)
      return std::unexpected(usage("--share", "", "is a memory backing of its own"));
    options.verify = verify == "touch" ? snapshot::Verify::kTouch : snapshot::Verify::kStart;
    options.prefault = prefault_;
    options.share = share_;
    vmm::VmConfig chosen;
    if (auto fine = set_backing(chosen); !fine)
      return fine;
    if (backing_)
      options.backing = chosen.backing;
    return {};
  }

  // None of the options that say what the machine is.
  std::expected<void, Error> check_alone(const char* reason) const {
    const std::array<std::pair<const char*, bool>, 9> said{
        {{"--cpus", cpus_.has_value()},
         {"--max-cpus", max_cpus_.has_value()},
         {"--memory", memory_.has_value()},
         {"--memory-backing", backing_ && !restore_ && !incoming_},
         {"--kernel", kernel_.has_value()},
         {"--initrd", initrd_.has_value()},
         {"--cmdline", cmdline_.has_value()},
         {"--disk", !restore_ && !incoming_ && !disks_.empty()},
         {"--net", !incoming_ && !nets_.empty()}}};
    for (const auto& [option, given] : said)
      if (given)
        return std::unexpected(usage(option, "", reason));
    return {};
  }

  std::expected<vmm::VmConfig, Error> read_machine() const {
    if (auto fine = check_alone("the file of --machine describes the whole machine, this too"); !fine)
      return std::unexpected(fine.error());
    const std::string path = machine_.value_or(""); // there is one: that is why we are here
    auto config = vmm::read_machine_file(path);
    if (!config)
      return std::unexpected(config.error());
    if (config->name.empty())
      return config;
    if (auto fine = vmm::check_vm_name(config->name); !fine)
      return std::unexpected(Error{"machine file", path + ": stopvisor,name", fine.error().reason, Status::kUsage});
    return config;
  }

  std::expected<vmm::VmConfig, Error> make_machine() const {
    vmm::VmConfig config;
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
    config.kernel = absolute(kernel_.value_or(""));
    config.initrd = absolute(initrd_.value_or(""));
    config.cmdline = cmdline_.value_or("");
    if (kernel_ && kernel_->empty())
      return std::unexpected(usage("--kernel", "", "needs the name of a file"));
    if (initrd_ && !kernel_)
      return std::unexpected(
          usage("--initrd", *initrd_, "goes with --kernel; the built-in probe guest takes no RAM disk"));
    if (auto fine = set_disks(config); !fine)
      return std::unexpected(fine.error());
    if (auto fine = set_nets(config); !fine)
      return std::unexpected(fine.error());
    if (auto fine = set_backing(config); !fine)
      return std::unexpected(fine.error());
    return config;
  }

  // The VM outlives the folder it was started in: a reset reads its files again, and so does whoever makes the same
  // machine from its description.
  static std::string absolute(const std::string& path) {
    std::error_code error;
    const auto whole = path.empty() ? std::filesystem::path() : std::filesystem::absolute(path, error);
    return error ? path : whole.lexically_normal().string();
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
    if (!backing_)
      return {};
    const auto backing = vmm::memory_backing_named(*backing_);
    if (!backing)
      return std::unexpected(usage("--memory-backing", *backing_, "must be anon, memfd or hugetlb"));
    config.backing = *backing;
    return {};
  }

  std::expected<void, Error> set_disks(vmm::VmConfig& config) const {
    for (const std::string& text : disks_) {
      auto disk = parse_disk(text);
      if (!disk)
        return std::unexpected(disk.error());
      disk->path = absolute(disk->path);
      config.disks.push_back(*std::move(disk));
    }
    return {};
  }

  std::expected<void, Error> set_nets(vmm::VmConfig& config) const {
    for (const std::string& text : nets_) {
      auto net = parse_net(text);
      if (!net)
        return std::unexpected(net.error());
      config.nets.push_back(*std::move(net));
    }
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

  // The source describes the whole machine; what may differ here is where its disks and networks are.
  std::expected<IncomingOrder, Error> make_incoming(bool json) const {
    if (restore_ || machine_)
      return std::unexpected(
          usage(restore_ ? "--restore" : "--machine", "", "the source of --incoming describes the whole machine"));
    if (auto fine = check_alone("the source of --incoming describes the whole machine, this too"); !fine)
      return std::unexpected(fine.error());
    for (const auto& [option, given] :
         std::array<std::pair<const char*, bool>, 5>{{{"--key", key_.has_value()},
                                                      {"--disks-as-they-are", disks_as_they_are_},
                                                      {"--verify", verify_.has_value()},
                                                      {"--prefault", prefault_},
                                                      {"--share", share_}}})
      if (given)
        return std::unexpected(usage(option, "", "goes with --restore"));
    if (detach_ && !name_)
      return std::unexpected(
          usage("--detach", "", "needs --name with --incoming: else nobody could ask for it before it is here"));
    IncomingOrder order;
    auto address = migrate::parse_address("run: --incoming", incoming_.value_or(""), migrate::Side::kDestination);
    if (!address)
      return std::unexpected(address.error());
    order.from = *std::move(address);
    const bool over_stdio = order.from.kind == migrate::AddressKind::kStdio;
    if (over_stdio && (detach_ || json))
      return std::unexpected(usage("--incoming", incoming_.value_or(""), "takes stdin and stdout for itself"));
    order.insecure = insecure_;
    if (name_)
      if (auto fine = vmm::check_vm_name(*name_); !fine)
        return std::unexpected(usage("--name", *name_, fine.error().reason));
    order.name = name_;
    if (auto fine = set_places(order); !fine)
      return std::unexpected(fine.error());
    if (clock_ && *clock_ != "resume" && *clock_ != "host")
      return std::unexpected(usage("--clock", *clock_, "must be resume or host"));
    order.wall_clock = clock_ == "host" ? vmm::WallClock::kHost : vmm::WallClock::kResume;
    order.paused = paused_;
    if (keep_) {
      const auto keep = vmm::parse_duration("run: --keep", *keep_);
      if (!keep)
        return std::unexpected(keep.error());
      order.keep = *keep;
    }
    vmm::VmConfig chosen;
    if (auto fine = set_backing(chosen); !fine)
      return std::unexpected(fine.error());
    if (backing_)
      order.backing = chosen.backing;
    if (auto fine = set_serial(chosen, json || over_stdio); !fine)
      return std::unexpected(fine.error());
    order.serial = chosen.serial;
    order.serial_path = chosen.serial_path;
    return order;
  }

  std::expected<void, Error> set_places(IncomingOrder& order) const {
    for (const std::string& text : disks_) {
      const auto place = parse_disk_place(text);
      if (!place)
        return std::unexpected(place.error());
      if (!order.disks.insert(*place).second)
        return std::unexpected(usage("--disk", text, "this disk has a place already"));
    }
    for (const std::string& text : nets_) {
      const auto place = parse_tap_place(text);
      if (!place)
        return std::unexpected(place.error());
      if (!order.taps.insert(*place).second)
        return std::unexpected(usage("--net", text, "this network has a tap already"));
    }
    return {};
  }

  std::expected<int, Error> run_incoming_guest(bool json) const {
    const auto order = make_incoming(json);
    if (!order)
      return std::unexpected(order.error());
    if (detach_) {
      const auto started = detach([&](Foreground& foreground) { return wait_behind(*order, foreground); });
      if (!started)
        return std::unexpected(started.error());
      if (json)
        print_text(Json{{"vm", name_.value_or("")}, {"pid", started->pid}, {"incoming", started->word}}.dump(2) +
                   "\n");
      else
        print_text(name_.value_or("") + ": waiting at " + started->word + ", pid " + std::to_string(started->pid) +
                   "\n");
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

  std::expected<int, Error> run_here(vmm::VmConfig config, bool json) const {
    set_up_log();
    const bool has_terminal = config.serial == vmm::SerialTarget::kTerminal && ::isatty(STDIN_FILENO) == 1;
    const auto ended = run_vm(std::move(config), restoration(), [has_terminal](const vmm::ControlPlace& place) {
      if (has_terminal)
        spdlog::info("{}: the guest has the terminal, Ctrl-C included; Ctrl-A x ends the VM", place.name());
    });
    return finish(ended, json);
  }

  std::expected<int, Error> run_detached(vmm::VmConfig config, bool json) const {
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
  int run_behind(vmm::VmConfig config, Foreground& foreground) const {
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

  [[nodiscard]] const snapshot::Restoration* restoration() const noexcept {
    return restoration_ ? &*restoration_ : nullptr;
  }

  std::optional<snapshot::Restoration> restoration_; // with --restore
  std::optional<std::string> name_;
  std::optional<std::string> incoming_;
  std::optional<std::string> keep_;
  std::optional<std::string> restore_;
  std::optional<std::string> key_;
  std::optional<std::string> expect_id_;
  std::optional<std::string> verify_;
  std::optional<std::string> clock_;
  std::optional<std::string> machine_;
  std::optional<std::string> cpus_;
  std::optional<std::string> max_cpus_;
  std::optional<std::string> memory_;
  std::optional<std::string> backing_;
  std::optional<std::string> kernel_;
  std::optional<std::string> initrd_;
  std::optional<std::string> cmdline_;
  std::vector<std::string> disks_;
  std::vector<std::string> nets_;
  std::optional<std::string> serial_;
  bool disks_as_they_are_ = false;
  bool prefault_ = false;
  bool share_ = false;
  bool insecure_ = false;
  bool paused_ = false;
  bool detach_ = false;
};

} // namespace

std::unique_ptr<Verb> make_run() {
  return std::make_unique<RunVerb>();
}

} // namespace stopvisor::tools
