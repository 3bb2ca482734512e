// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/machine_options.h"

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "tools/stopvisor/disk_option.h"
#include "tools/stopvisor/net_option.h"
#include "vmm/control/socket_place.h"
#include "vmm/machine_file.h"
#include "vmm/units.h"

namespace stopvisor::tools {
namespace {

using vmm::Error;

// The VM outlives the folder it was started in: a reset reads its files again, and so does whoever makes the same
// machine from its description.
std::string absolute(const std::string& path) {
  std::error_code error;
  const auto whole = path.empty() ? std::filesystem::path() : std::filesystem::absolute(path, error);
  return error ? path : whole.lexically_normal().string();
}

std::expected<void, Error> set_count(const char* option, const std::optional<std::string>& text, uint32_t& to) {
  if (!text)
    return {};
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), to);
  if (error != std::errc{} || end != text->data() + text->size() || to == 0)
    return std::unexpected(option_error(option, *text, "must be a number of vCPUs, 1 or more"));
  return {};
}

std::expected<void, Error> set_boot(const RunOptions& options, vmm::VmConfig& config) {
  config.kernel = absolute(options.kernel.value_or(""));
  config.initrd = absolute(options.initrd.value_or(""));
  config.cmdline = options.cmdline.value_or("");
  if (options.kernel && options.kernel->empty())
    return std::unexpected(option_error("--kernel", "", "needs the name of a file"));
  if (options.initrd && !options.kernel)
    return std::unexpected(option_error("--initrd", *options.initrd,
                                        "goes with --kernel; the built-in probe guest takes no RAM disk"));
  return {};
}

std::expected<void, Error> set_disks(const RunOptions& options, vmm::VmConfig& config) {
  for (const std::string& text : options.disks) {
    auto disk = parse_disk(text);
    if (!disk)
      return std::unexpected(disk.error());
    config.disks.push_back(*std::move(disk));
  }
  return {};
}

std::expected<void, Error> set_nets(const RunOptions& options, vmm::VmConfig& config) {
  for (const std::string& text : options.nets) {
    auto net = parse_net(text);
    if (!net)
      return std::unexpected(net.error());
    config.nets.push_back(*std::move(net));
  }
  return {};
}

std::expected<vmm::VmConfig, Error> make_machine(const RunOptions& options) {
  vmm::VmConfig config;
  if (auto fine = set_count("--cpus", options.cpus, config.cpus); !fine)
    return std::unexpected(fine.error());
  if (auto fine = set_count("--max-cpus", options.max_cpus, config.max_cpus); !fine)
    return std::unexpected(fine.error());
  if (options.memory) {
    const auto bytes = vmm::parse_size("run: --memory", *options.memory);
    if (!bytes)
      return std::unexpected(bytes.error());
    config.memory_bytes = *bytes;
  }
  if (auto fine = set_boot(options, config); !fine)
    return std::unexpected(fine.error());
  if (auto fine = set_disks(options, config); !fine)
    return std::unexpected(fine.error());
  if (auto fine = set_nets(options, config); !fine)
    return std::unexpected(fine.error());
  const auto backing = options.memory_backing();
  if (!backing)
    return std::unexpected(backing.error());
  config.backing = backing->value_or(config.backing);
  return config;
}

std::expected<vmm::VmConfig, Error> read_machine(const RunOptions& options, const std::string& path) {
  if (auto fine =
          options.check_machine_is_not_described("the file of --machine describes the whole machine, this too");
      !fine)
    return std::unexpected(fine.error());
  auto config = vmm::read_machine_file(path);
  if (!config)
    return std::unexpected(config.error());
  if (config->name.empty())
    return config;
  if (auto fine = vmm::check_vm_name(config->name); !fine)
    return std::unexpected(
        Error{"machine file", path + ": stopvisor,name", fine.error().reason, vmm::Status::kUsage});
  return config;
}

} // namespace

std::expected<vmm::VmConfig, Error> new_machine(const RunOptions& options) {
  return options.machine ? read_machine(options, *options.machine) : make_machine(options);
}

} // namespace stopvisor::tools
