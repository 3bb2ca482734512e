// SPDX-License-Identifier: Apache-2.0
// What a machine must be like to take another one's state, asked before any of that state is there.
#include <string>
#include <utility>

#include "vmm/state/cpu_features.h"
#include "vmm/state/machine_match.h"
#include "vmm/state/sections.h"
#include "vmm/state/vcpu_values.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {

// All of the state is saved for it, and with it found out whether that can be done at all.
std::expected<std::vector<StateSection>, Error> Vm::save_requirements() {
  auto sections = parts_->save_state();
  if (sections)
    std::erase_if(*sections, [](const StateSection& section) {
      return section.kind != static_cast<uint32_t>(StateKind::kMachine) &&
             section.kind != static_cast<uint32_t>(StateKind::kVcpuCpuid);
    });
  return sections;
}

std::expected<void, Error> Vm::check_requirements(std::span<const StateSection> sections) const {
  const VmConfig& own = config();
  if (!own.bare || parts_->started.load(std::memory_order_acquire)) // pairs with start()
    return std::unexpected(Error{"restore", own.name, "it was not made to be restored into", Status::kUsage});
  if (auto made = parts_->check_made("restore"); !made)
    return made;
  auto from = StateSections::index(sections);
  if (!from)
    return std::unexpected(from.error());
  std::vector<std::byte> tree;
  if (auto done = from->take(StateKind::kMachine, kStateVersion, 0,
                             [&](StateReader& in) {
                               const auto bytes = in.get_bytes(in.left());
                               tree.assign(bytes.begin(), bytes.end());
                             });
      !done)
    return done;
  const uint32_t cpus = from->count(StateKind::kVcpuCpuid);
  const std::vector<std::byte> here = device_tree();
  if (auto alike = check_machine({tree, cpus}, {here, own.cpus}); !alike)
    return alike;
  for (uint32_t cpu = 0; cpu < cpus; ++cpu) {
    const auto told = decode_cpuid(*from, cpu);
    if (!told)
      return std::unexpected(told.error());
    if (auto fits = check_cpu_features(*told, parts_->vcpus[cpu].initial.cpuid()); !fits)
      return fits;
  }
  return from->finish();
}

} // namespace stopvisor::vmm
