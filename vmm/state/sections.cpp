// SPDX-License-Identifier: Apache-2.0
#include "vmm/state/sections.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <tuple>

namespace stopvisor::vmm {
namespace {

enum class Whose { kVcpu, kChip, kSlot, kMachine };

struct Kind {
  StateKind kind;
  Whose whose;
  const char* name;
};
constexpr std::array kKinds{
    Kind{StateKind::kVcpuCpuid, Whose::kVcpu, "CPUID"},
    Kind{StateKind::kVcpuSregs, Whose::kVcpu, "system registers"},
    Kind{StateKind::kVcpuRegs, Whose::kVcpu, "registers"},
    Kind{StateKind::kVcpuXsave, Whose::kVcpu, "XSAVE area"},
    Kind{StateKind::kVcpuXcrs, Whose::kVcpu, "extended control registers"},
    Kind{StateKind::kVcpuDebugRegs, Whose::kVcpu, "debug registers"},
    Kind{StateKind::kVcpuLapic, Whose::kVcpu, "local APIC"},
    Kind{StateKind::kVcpuMsrs, Whose::kVcpu, "MSRs"},
    Kind{StateKind::kVcpuTsc, Whose::kVcpu, "TSC"},
    Kind{StateKind::kVcpuEvents, Whose::kVcpu, "events"},
    Kind{StateKind::kVcpuMpState, Whose::kVcpu, "MP state"},
    Kind{StateKind::kVcpuActivity, Whose::kVcpu, "presence"},
    Kind{StateKind::kIrqChip, Whose::kChip, "interrupt controller"},
    Kind{StateKind::kPit, Whose::kMachine, "the PIT"},
    Kind{StateKind::kClock, Whose::kMachine, "the clock"},
    Kind{StateKind::kSerial, Whose::kMachine, "the serial port"},
    Kind{StateKind::kKeyboard, Whose::kMachine, "the keyboard controller"},
    Kind{StateKind::kCpuDevice, Whose::kMachine, "the CPU device"},
    Kind{StateKind::kPowerDevice, Whose::kMachine, "the power device"},
    Kind{StateKind::kAcpiPower, Whose::kMachine, "ACPI's registers"},
    Kind{StateKind::kPvPanic, Whose::kMachine, "the panic port"},
    Kind{StateKind::kDoorbell, Whose::kMachine, "the doorbell"},
    Kind{StateKind::kResetPort, Whose::kMachine, "the reset control register"},
    Kind{StateKind::kVirtioTransport, Whose::kSlot, "registers"},
    Kind{StateKind::kVirtioBackend, Whose::kSlot, "device"},
    Kind{StateKind::kMachine, Whose::kMachine, "the machine"},
    Kind{StateKind::kPatchLedger, Whose::kMachine, "the patches"},
};

const Kind* known(uint32_t kind) noexcept {
  const auto* const found = std::ranges::find(kKinds, static_cast<StateKind>(kind), &Kind::kind);
  return found == kKinds.end() ? nullptr : found;
}

Error wrong(std::string object, std::string reason) {
  return Error{"restore", std::move(object), std::move(reason), Status::kFailed};
}

std::pair<uint32_t, uint32_t> key(const StateSection& section) {
  return {section.kind, section.instance};
}

} // namespace

std::string name_of_section(uint32_t kind, uint32_t instance) {
  const Kind* const found = known(kind);
  if (found == nullptr) {
    std::array<char, 40> text{};
    std::snprintf(text.data(), text.size(), "section of kind 0x%x", kind);
    return text.data();
  }
  switch (found->whose) {
  case Whose::kVcpu:
    return "vCPU " + std::to_string(instance) + "'s " + found->name;
  case Whose::kChip:
    return std::string(found->name) + " " + std::to_string(instance);
  case Whose::kSlot:
    return "virtio slot " + std::to_string(instance) + "'s " + found->name;
  case Whose::kMachine:
    break;
  }
  return found->name + (instance == 0 ? "" : " " + std::to_string(instance));
}

Error wrong_section(StateKind kind, uint32_t instance, const std::string& reason) {
  return wrong(name_of_section(static_cast<uint32_t>(kind), instance), reason);
}

std::expected<StateSections, Error> StateSections::index(std::span<const StateSection> sections) {
  StateSections result;
  for (const StateSection& section : sections) {
    if (known(section.kind) == nullptr)
      return std::unexpected(
          wrong(name_of_section(section.kind, section.instance), "this program does not know what it is"));
    result.entries_.push_back({&section, false});
  }
  const auto key_of = [](const Entry& entry) { return key(*entry.section); };
  std::ranges::sort(result.entries_, {}, key_of);
  const auto twice = std::ranges::adjacent_find(result.entries_, {}, key_of);
  if (twice != result.entries_.end())
    return std::unexpected(
        wrong(name_of_section(twice->section->kind, twice->section->instance), "it is there twice"));
  return result;
}

const StateSections::Entry* StateSections::find(StateKind kind, uint32_t instance) const noexcept {
  const std::pair wanted{static_cast<uint32_t>(kind), instance};
  const auto found =
      std::ranges::lower_bound(entries_, wanted, {}, [](const Entry& entry) { return key(*entry.section); });
  return found == entries_.end() || key(*found->section) != wanted ? nullptr : &*found;
}

bool StateSections::has(StateKind kind, uint32_t instance) const noexcept {
  return find(kind, instance) != nullptr;
}

uint32_t StateSections::count(StateKind kind) const noexcept {
  uint32_t instance = 0;
  while (has(kind, instance))
    ++instance;
  return instance;
}

std::expected<void, Error> StateSections::take(StateKind kind, uint32_t version, uint32_t instance,
                                               const std::function<void(StateReader&)>& read) {
  const Entry* const found = find(kind, instance);
  if (found == nullptr)
    return std::unexpected(wrong_section(kind, instance, "it is missing"));
  const StateSection& section = *found->section;
  if (section.version != version)
    return std::unexpected(wrong_section(kind, instance,
                                         "it is of version " + std::to_string(section.version) +
                                             ", and this program reads version " + std::to_string(version)));
  entries_[static_cast<size_t>(found - entries_.data())].taken = true;
  StateReader reader(section.payload);
  read(reader);
  if (const char* const why = reader.finish(); why != nullptr)
    return std::unexpected(wrong_section(kind, instance, why));
  return {};
}

void StateSections::pass_over(StateKind kind, uint32_t instance) noexcept {
  if (const Entry* const found = find(kind, instance); found != nullptr)
    entries_[static_cast<size_t>(found - entries_.data())].taken = true;
}

std::expected<void, Error> StateSections::finish() const {
  for (const Entry& entry : entries_)
    if (!entry.taken)
      return std::unexpected(wrong(name_of_section(entry.section->kind, entry.section->instance),
                                   "this machine has nothing to take it"));
  return {};
}

} // namespace stopvisor::vmm
