// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/vm_services.h"

#include <algorithm>

#include <spdlog/spdlog.h>

namespace stopvisor::tools {

VmServices::VmServices(vmm::Vm& vm)
    : api_(vm), patches_(vm, api_),
      snapshots_(vm, api_,
                 [this](snapshot::Contents& contents) {
                   add_state(contents.state);
                   for (const patch::Ledger::Entry& record : patches_.engine().list())
                     contents.patches.emplace_back(record->manifest.name, record->manifest.version);
                 }),
      migrations_(
          vm, api_, [this](std::vector<vmm::StateSection>& state) { add_state(state); },
          [name = vm.config().name](const std::string& text) { spdlog::warn("{}: migration: {}", name, text); }) {}

void VmServices::add_state(std::vector<vmm::StateSection>& to) {
  to.push_back(patches_.engine().save_state());
}

std::expected<void, vmm::Error> VmServices::restore(std::span<const vmm::StateSection> sections) {
  const auto ledger =
      std::ranges::find(sections, static_cast<uint32_t>(vmm::StateKind::kPatchLedger), &vmm::StateSection::kind);
  return ledger == sections.end() ? std::expected<void, vmm::Error>() : patches_.engine().restore_state(*ledger);
}

} // namespace stopvisor::tools
