// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/run_options.h"

#include "tools/stopvisor/disk_option.h"
#include "vmm/control/socket_place.h"

namespace stopvisor::tools {

using vmm::Error;

Error option_error(const char* option, std::string_view value, std::string reason) {
  return {std::string("run: ") + option, std::string(value), std::move(reason), vmm::Status::kUsage};
}

std::expected<void, Error> refuse_given(std::initializer_list<OptionGiven> options, const char* reason) {
  for (const auto& [option, given] : options)
    if (given)
      return std::unexpected(option_error(option, "", reason));
  return {};
}

void RunOptions::declare(Arguments& arguments) {
  arguments.option("--name", name, "NAME", "Name of the VM (default: vm1, vm2, ...)");
  arguments.option("--machine", machine, "FILE",
                   "A device tree (.dtb or .dts) that describes the machine, in place of the next options");
  arguments.option("--cpus", cpus, "N", "Number of vCPUs (default 1)");
  arguments.option("--max-cpus", max_cpus, "N", "Number of vCPUs it may grow to (default 32, or --cpus)");
  arguments.option("--memory", memory, "SIZE", "Guest memory, as 512M or 1.5G (default 256M)");
  arguments.option("--memory-backing", backing, "KIND", "anon, memfd or hugetlb (default anon)");
  arguments.option("--kernel", kernel, "FILE", "A Linux bzImage or PVH ELF to boot (default: the probe guest)");
  arguments.option("--initrd", initrd, "FILE", "Its initial RAM disk");
  arguments.option("--cmdline", cmdline, "STRING", "Its command line");
  arguments.options("--disk", disks, "FILE[,ro]",
                    "A disk: a raw image or a block device, ro: only to be read; several make several. With "
                    "--restore N=FILE: the image of disk N of the snapshot (0: the first), a new file where the "
                    "snapshot has it");
  arguments.options("--net", nets, "tap=IF[,mac=ADDRESS]",
                    "A network device on the host's tap IF; several make several");
  arguments.option("--serial", serial, "WHERE",
                   "stdio, none or file:PATH (default stdio; none with --detach or --json)");
  arguments.option("--restore", restore, "DIR", "Go on from a snapshot, which describes the whole machine");
  arguments.option("--key", key, "FILE", "The key the snapshot is sealed with");
  arguments.option("--expect-id", expect_id, "ID",
                   "With --restore: only this snapshot, as 'snapshot info' shows its id");
  arguments.flag("--disks-as-they-are", disks_as_they_are,
                 "With --restore: go on also with images that were written since the snapshot");
  arguments.option("--verify", verify, "WHEN",
                   "Check memory at the start, or each MiB on touch and so start at once (default start)");
  arguments.flag("--prefault", prefault, "Start at once, and bring in memory while it runs (a job of the VM)");
  arguments.option("--clock", clock, "WHICH",
                   "The wall clock the guest is told: resume, from the snapshot's moment on, or host (default "
                   "resume)");
  arguments.flag("--share", share, "Map memory from the snapshot's file, so that clones share its pages");
  arguments.option("--incoming", incoming, "URI",
                   "Wait for a guest that comes by migration: unix:PATH, tcp://HOST:PORT, fd:N or stdio:");
  arguments.flag("--insecure", insecure,
                 "With --incoming: also take one over plain TCP from another host, which anybody between can read "
                 "and change");
  arguments.option(
      "--keep", keep, "DURATION",
      "With --incoming: how long a guest that is ready waits for a source that was lost (default 300s)");
  arguments.flag("--paused", paused, "Start held; 'stopvisor resume' lets it go");
  arguments.flag("--detach", detach, "Run in the background");
}

std::expected<void, Error> RunOptions::check_machine_is_not_described(const char* reason) const {
  return refuse_given({{"--cpus", cpus.has_value()},
                       {"--max-cpus", max_cpus.has_value()},
                       {"--memory", memory.has_value()},
                       {"--memory-backing", backing && !restore && !incoming},
                       {"--kernel", kernel.has_value()},
                       {"--initrd", initrd.has_value()},
                       {"--cmdline", cmdline.has_value()},
                       {"--disk", !restore && !incoming && !disks.empty()},
                       {"--net", !incoming && !nets.empty()}},
                      reason);
}

std::expected<void, Error> RunOptions::check_name() const {
  if (!name)
    return {};
  if (auto fine = vmm::check_vm_name(*name); !fine)
    return std::unexpected(option_error("--name", *name, fine.error().reason));
  return {};
}

std::expected<std::optional<vmm::MemoryBacking>, Error> RunOptions::memory_backing() const {
  if (!backing)
    return std::nullopt;
  const auto named = vmm::memory_backing_named(*backing);
  if (!named)
    return std::unexpected(option_error("--memory-backing", *backing, "must be anon, memfd or hugetlb"));
  return named;
}

std::expected<vmm::WallClock, Error> RunOptions::wall_clock() const {
  if (clock && *clock != "resume" && *clock != "host")
    return std::unexpected(option_error("--clock", *clock, "must be resume or host"));
  return clock == "host" ? vmm::WallClock::kHost : vmm::WallClock::kResume;
}

std::expected<std::map<size_t, std::string>, Error> RunOptions::disk_places() const {
  std::map<size_t, std::string> places;
  for (const std::string& text : disks) {
    const auto place = parse_disk_place(text);
    if (!place)
      return std::unexpected(place.error());
    if (!places.insert(*place).second)
      return std::unexpected(option_error("--disk", text, "this disk has a place already"));
  }
  return places;
}

std::expected<SerialChoice, Error> RunOptions::serial_choice(bool stdout_taken) const {
  static constexpr std::string_view kFilePrefix = "file:";
  const std::string where = serial.value_or(detach || stdout_taken ? "none" : "stdio");
  if (where == "none")
    return SerialChoice{};
  if (where == "stdio") {
    if (detach || stdout_taken)
      return std::unexpected(option_error(
          "--serial", where, detach ? "there is no terminal with --detach" : "--json needs stdout for itself"));
    return SerialChoice{.target = vmm::SerialTarget::kTerminal, .path = {}};
  }
  if (where.starts_with(kFilePrefix) && where.size() > kFilePrefix.size())
    return SerialChoice{.target = vmm::SerialTarget::kFile, .path = where.substr(kFilePrefix.size())};
  return std::unexpected(option_error("--serial", where, "must be stdio, none or file:PATH"));
}

} // namespace stopvisor::tools
