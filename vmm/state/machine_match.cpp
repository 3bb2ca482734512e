// SPDX-License-Identifier: Apache-2.0
#include "vmm/state/machine_match.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "vmm/machine_reader.h"
#include "vmm/state/section.h"
#include "vmm/state/sections.h"
#include "vmm/tree_reader.h"

namespace stopvisor::vmm {
namespace {

// Of an error's text; a description may be made of nothing but differences.
constexpr size_t kLongEnough = 1000;

// By what people call it: what it is. Both machines' in the same order.
using Traits = std::map<std::string, std::string>;

// "3072 MiB"; "4 KiB" where that says it better.
std::string size_text(uint64_t bytes) {
  return bytes % (1U << 20) == 0 ? std::to_string(bytes >> 20) + " MiB" : std::to_string(bytes >> 10) + " KiB";
}

std::expected<void, Error> add_memory(const TreeNode& node, Traits& to) {
  const auto reg = node.cells("reg", 4);
  if (!reg)
    return std::unexpected(reg.error());
  const auto& cells = *reg;
  if (!cells)
    return std::unexpected(node.refuse("reg", "is missing"));
  to[node.path().substr(1)] = size_text((uint64_t{(*cells)[2]} << 32) | (*cells)[3]);
  return {};
}

std::expected<Traits, Error> traits_of(const MachineShape& machine) {
  Traits traits;
  uint32_t possible = 0;
  auto done = for_each_node(machine.tree, [&](const TreeNode& node) -> std::expected<void, Error> {
    const std::string& path = node.path();
    const auto compatible = node.texts("compatible");
    if (path.starts_with("/memory"))
      return add_memory(node, traits);
    if (path.starts_with("/cpus/"))
      ++possible;
    else if (path.starts_with("/isa/timer") && !compatible.empty())
      traits["PIT"] = compatible.front();
    else if (std::ranges::find(compatible, "virtio,mmio") != compatible.end())
      traits["device " + path.substr(1)] = compatible.front();
    return {};
  });
  if (!done)
    return std::unexpected(done.error());
  traits["vCPUs"] = std::to_string(machine.cpus);
  traits["possible vCPUs"] = std::to_string(possible);
  return traits;
}

std::string value_in(const Traits& traits, const std::string& name) {
  const auto found = traits.find(name);
  return found == traits.end() ? "none" : found->second;
}

} // namespace

std::expected<void, Error> check_machine(const MachineShape& saved, const MachineShape& here) {
  if (saved.tree.size() > kMaxMachineBytes)
    return std::unexpected(wrong_section(StateKind::kMachine, 0, "it is too long"));
  const auto theirs = traits_of(saved);
  if (!theirs)
    return std::unexpected(wrong_section(StateKind::kMachine, 0, theirs.error().message()));
  const auto ours = traits_of(here);
  if (!ours)
    return std::unexpected(ours.error());
  Traits names = *theirs;
  names.insert(ours->begin(), ours->end());
  std::string differences;
  for (const auto& [name, value] : names) {
    const std::string is = value_in(*ours, name);
    const std::string was = value_in(*theirs, name);
    if (is == was)
      continue;
    if (differences.size() > kLongEnough) {
      differences += "; and more";
      break;
    }
    differences += (differences.empty() ? "" : "; ") + name + ": " + is + ", saved: " + was;
  }
  if (!differences.empty())
    return std::unexpected(
        Error{"restore", "the machine", "it is not like the one that was saved: " + differences, Status::kUsage});
  return {};
}

} // namespace stopvisor::vmm
