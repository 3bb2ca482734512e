// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine_reader.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "stopper/cpu_mask.h"
#include "vmm/machine_description.h"
#include "vmm/tree_reader.h"
#include "vmm/virtio/device_table.h"
#include "vmm/vm_boot.h"

namespace stopvisor::vmm {
namespace {

using Done = std::expected<void, Error>;

// What was found, before it is known whether it is a machine.
class Gathered {
public:
  Gathered() { config_.memory_bytes = 0; }
  Done take(const TreeNode& node) {
    if (node.path() == "/")
      return take_root(node);
    if (node.path() == "/chosen")
      return take_chosen(node);
    if (node.path().starts_with("/cpus/"))
      return take_cpu(node);
    if (node.path().starts_with("/memory"))
      return take_memory(node);
    const auto compatible = node.texts("compatible");
    if (std::ranges::find(compatible, "virtio,mmio") != compatible.end())
      return take_virtio(node, compatible.front());
    return {};
  }
  std::expected<VmConfig, Error> config() &&;

private:
  Done take_root(const TreeNode& node);
  Done take_chosen(const TreeNode& node);
  Done take_cpu(const TreeNode& node);
  Done take_memory(const TreeNode& node);
  Done take_virtio(const TreeNode& node, const std::string& kind);
  Done add_devices();
  static Done set_text(const TreeNode& node, const char* property, std::string& to);

  VmConfig config_;
  std::map<uint32_t, bool> cpus_; // by number: whether it is enabled
  struct Device {
    std::string path;
    const virtio::Kind* kind;
    virtio::Properties properties;
  };
  std::map<uint64_t, Device> devices_; // by address, which is the order of their slots
};

// RETURNS: the node's `reg`, which it must have, of `cells` cells.
std::expected<std::vector<uint32_t>, Error> wanted_reg(const TreeNode& node, size_t cells) {
  auto found = node.cells("reg", cells);
  if (!found)
    return std::unexpected(found.error());
  auto& reg = *found;
  if (!reg)
    return std::unexpected(node.refuse("reg", "is missing"));
  return std::move(*reg);
}

Done Gathered::set_text(const TreeNode& node, const char* property, std::string& to) {
  auto text = node.text(property);
  if (!text)
    return std::unexpected(text.error());
  if (auto& given = *text; given)
    to = std::move(*given);
  return {};
}

Done Gathered::take_root(const TreeNode& node) {
  const auto compatible = node.text("compatible");
  if (!compatible)
    return std::unexpected(compatible.error());
  if (*compatible != kMachineCompatible)
    return std::unexpected(node.refuse("compatible", std::string("must be \"") + kMachineCompatible + "\""));
  std::string backing;
  if (auto done = set_text(node, kBackingProperty, backing); !done)
    return done;
  if (!backing.empty()) {
    const auto known = memory_backing_named(backing);
    if (!known)
      return std::unexpected(node.refuse(kBackingProperty, "must be anon, memfd or hugetlb"));
    config_.backing = *known;
  }
  return set_text(node, kNameProperty, config_.name);
}

Done Gathered::take_chosen(const TreeNode& node) {
  if (auto done = set_text(node, "bootargs", config_.cmdline); !done)
    return done;
  if (auto done = set_text(node, kKernelProperty, config_.kernel); !done)
    return done;
  return set_text(node, kInitrdProperty, config_.initrd);
}

Done Gathered::take_cpu(const TreeNode& node) {
  const auto number = wanted_reg(node, 1);
  if (!number)
    return std::unexpected(number.error());
  std::string status = "okay";
  if (auto done = set_text(node, "status", status); !done)
    return done;
  if (status != "okay" && status != "disabled")
    return std::unexpected(node.refuse("status", "must be \"okay\" or \"disabled\""));
  if (!cpus_.emplace(number->front(), status == "okay").second)
    return std::unexpected(node.refuse("reg", "is another vCPU's already"));
  if (cpus_.size() > stopper::kMaxCpus)
    return std::unexpected(
        node.refuse("", "a machine has at most " + std::to_string(stopper::kMaxCpus) + " vCPUs"));
  return {};
}

Done Gathered::take_memory(const TreeNode& node) {
  const auto reg = wanted_reg(node, 4);
  if (!reg)
    return std::unexpected(reg.error());
  const uint64_t size = (uint64_t{(*reg)[2]} << 32) | (*reg)[3];
  if (size > UINT64_MAX - config_.memory_bytes)
    return std::unexpected(node.refuse("reg", "is too large"));
  config_.memory_bytes += size;
  return {};
}

Done Gathered::take_virtio(const TreeNode& node, const std::string& kind) {
  const auto known = std::ranges::find(virtio::kinds(), kind, &virtio::Kind::compatible);
  if (known == virtio::kinds().end())
    return std::unexpected(node.refuse("compatible", "there is no such device"));
  const auto reg = wanted_reg(node, 4);
  if (!reg)
    return std::unexpected(reg.error());
  Device device{node.path(), &*known, {}};
  for (const TreeNode::Property& property : node.properties()) {
    if (!property.name.starts_with("stopvisor,"))
      continue;
    virtio::Property ours{std::string(property.name), std::nullopt};
    if (!property.value.empty()) {
      auto text = node.text(property.name);
      if (!text)
        return std::unexpected(text.error());
      ours.text = std::move(*text);
    }
    device.properties.push_back(std::move(ours));
  }
  const uint64_t base = (uint64_t{(*reg)[0]} << 32) | (*reg)[1];
  if (!devices_.emplace(base, std::move(device)).second)
    return std::unexpected(node.refuse("reg", "is another device's already"));
  return {};
}

Done Gathered::add_devices() {
  for (const auto& [base, device] : devices_)
    if (auto added = device.kind->add(config_, device.properties); !added)
      return std::unexpected(Error{"machine description", device.path + ": " + added.error().object,
                                   added.error().reason, Status::kUsage});
  return {};
}

std::expected<VmConfig, Error> Gathered::config() && {
  const auto refuse = [](const char* object, std::string reason) {
    return std::unexpected(Error{"machine description", object, std::move(reason), Status::kUsage});
  };
  if (config_.memory_bytes == 0)
    return refuse("/memory", "the machine has no memory");
  if (cpus_.empty())
    return refuse("/cpus", "the machine has no vCPU");
  config_.max_cpus = static_cast<uint32_t>(cpus_.size());
  config_.cpus = 0;
  uint32_t expected = 0;
  for (const auto& [number, enabled] : cpus_) {
    if (number != expected++)
      return refuse("/cpus", "vCPU " + std::to_string(expected - 1) + " is not there, and vCPU " +
                                 std::to_string(number) + " is: they are numbered from 0 on");
    if (enabled && config_.cpus != number)
      return refuse("/cpus", "vCPU " + std::to_string(number) + " is enabled and vCPU " +
                                 std::to_string(config_.cpus) + " is not: a machine starts with its first vCPUs");
    config_.cpus += enabled ? 1 : 0;
  }
  if (config_.cpus == 0)
    return refuse("/cpus", "no vCPU is enabled");
  if (auto added = add_devices(); !added)
    return std::unexpected(added.error());
  return std::move(config_);
}

// What a machine of this configuration has, by path and property.
using Parts = std::map<std::string, std::map<std::string, std::vector<std::byte>, std::less<>>>;

std::expected<Parts, Error> parts_of(const VmConfig& config) {
  const auto tree = describe_machine(machine_of(config, stopper::CpuMask::first_n(config.cpus), true));
  if (!tree)
    return std::unexpected(tree.error());
  Parts parts;
  auto done = for_each_node(*tree, [&](const TreeNode& node) -> Done {
    auto& properties = parts[node.path()];
    for (const TreeNode::Property& property : node.properties())
      properties.emplace(property.name, std::vector(property.value.begin(), property.value.end()));
    return {};
  });
  if (!done)
    return std::unexpected(done.error());
  return parts;
}

// What does not make a machine another one: labels, names for people, and where the initrd lay, which is found
// anew.
bool says_nothing(const TreeNode& node, std::string_view property) {
  if (property == "phandle" || property == "linux,phandle")
    return node.path() != kIoApicPath; // interrupts refer to it
  if (node.path() == "/")
    return property == "model";
  if (node.path() == "/chosen")
    return property == "linux,initrd-start" || property == "linux,initrd-end";
  return node.path().starts_with("/cpus/") && property == "status"; // "okay" is what is not written
}

Done compare(const TreeNode& node, const Parts& parts) {
  const auto part = parts.find(node.path());
  if (part == parts.end())
    return std::unexpected(node.refuse("", "no such part, or not there, in the machine this describes"));
  for (const TreeNode::Property& property : node.properties()) {
    if (says_nothing(node, property.name))
      continue;
    const auto ours = part->second.find(property.name);
    if (ours == part->second.end())
      return std::unexpected(node.refuse(property.name, "no such property in the machine this describes"));
    if (!std::ranges::equal(ours->second, property.value))
      return std::unexpected(node.refuse(property.name, "is otherwise in the machine this describes"));
  }
  return {};
}

} // namespace

std::expected<VmConfig, Error> read_machine(std::span<const std::byte> tree) {
  if (tree.size() > kMaxMachineBytes)
    return std::unexpected(Error{"machine description", "",
                                 "larger than " + std::to_string(kMaxMachineBytes >> 20) + " MiB", Status::kUsage});
  std::vector<uint64_t> aligned; // libfdt reads trees at multiples of 8
  if (reinterpret_cast<uintptr_t>(tree.data()) % sizeof(uint64_t) != 0) {
    aligned.resize(tree.size() / sizeof(uint64_t) + 1);
    std::memcpy(aligned.data(), tree.data(), tree.size());
    tree = std::as_bytes(std::span(aligned)).first(tree.size());
  }
  Gathered gathered;
  if (auto done = for_each_node(tree, [&](const TreeNode& node) { return gathered.take(node); }); !done)
    return std::unexpected(done.error());
  auto config = std::move(gathered).config();
  if (!config)
    return config;
  const auto parts = parts_of(*config);
  if (!parts)
    return std::unexpected(parts.error());
  if (auto same = for_each_node(tree, [&](const TreeNode& node) { return compare(node, *parts); }); !same)
    return std::unexpected(same.error());
  return config;
}

} // namespace stopvisor::vmm
