// SPDX-License-Identifier: Apache-2.0
// The state of a machine, saved under a stop: docs/explanation/state.md.
#include <algorithm>
#include <string>

#include "vmm/state/sections.h"
#include "vmm/state/vcpu_access.h"
#include "vmm/tsc.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {
namespace {

// Intel SDM volume 3, 2.5; AMD APM volume 2, 15.4.
constexpr uint64_t kCr4Vmx = 1U << 13;
constexpr uint64_t kEferSvm = 1U << 12;

// A local APIC's registers, 16 bytes apart (Intel SDM volume 3, table 11-1).
constexpr size_t kLvtTimer = 0x320, kInitialCount = 0x380, kCurrentCount = 0x390, kDivide = 0x3e0;

bool same(const kvm_lapic_state& a, const kvm_lapic_state& b, size_t at) {
  return std::equal(a.regs + at, a.regs + at + 4, b.regs + at);
}

} // namespace

std::vector<Vm::Parts::StatefulPart> Vm::Parts::stateful_parts() {
  using enum StateKind;
  std::vector<StatefulPart> list{
      {kSerial, kStateVersion, 0, &serial},           {kKeyboard, kStateVersion, 0, &keyboard},
      {kCpuDevice, kStateVersion, 0, &cpu_device},    {kPowerDevice, kStateVersion, 0, &power},
      {kAcpiPower, kStateVersion, 0, &acpi_power},    {kPvPanic, kStateVersion, 0, &pvpanic},
      {kResetPort, kStateVersion, 0, &reset_control}, {kDoorbell, kStateVersion, 0, &doorbell},
  };
  for (uint32_t slot = 0; slot < slots.size(); ++slot) {
    list.push_back({kVirtioTransport, kStateVersion, slot, &slots[slot]->transport()}); // starts the device
    list.push_back({kVirtioBackend, kStateVersion, slot, &slots[slot]->device()});
  }
  return list;
}

// Once in each stop. CONTEXT: under it.
std::expected<Vm::Parts::Instant*, Error> Vm::Parts::note_instant() {
  if (instant && instant->stop == machine.sequence())
    return &*instant;
  const auto now = kvm.clock();
  if (!now)
    return std::unexpected(now.error());
  const KvmTscAccess access(vcpus[0].thread.vcpu());
  const auto tsc = access.msr(kMsrTsc);
  if (!tsc)
    return std::unexpected(tsc.error());
  return &instant.emplace(Instant{machine.sequence(), *now, *tsc, access.offset(), {}});
}

std::expected<void, Error> Vm::Parts::save_vcpu(uint32_t cpu, Instant& at, std::vector<StateSection>& to) {
  const KvmVcpu& vcpu = vcpus[cpu].thread.vcpu();
  auto values = read_vcpu(vcpu, system, vcpus[cpu].initial.msrs());
  if (!values)
    return std::unexpected(values.error());
  if ((values->sregs.cr4 & kCr4Vmx) != 0 || (values->sregs.efer & kEferSvm) != 0)
    return std::unexpected(Error{"save state", "vCPU " + std::to_string(cpu),
                                 "the guest itself uses virtualisation, whose state this KVM does not give",
                                 Status::kRefused});
  // All vCPUs' time stamps of one instant, as their offsets from the host's are to each other.
  const auto own = at.offset ? KvmTscAccess(vcpu).offset() : std::nullopt;
  values->tsc = at.tsc + own.value_or(0) - (own ? at.offset.value_or(0) : 0);
  // A timer that runs: what is left of it, at the instant.
  std::vector<kvm_lapic_state>& lapics = at.lapics;
  if (lapics.size() == cpu)
    lapics.push_back(values->lapic);
  else if (const kvm_lapic_state& then = lapics[cpu]; same(then, values->lapic, kLvtTimer) &&
                                                      same(then, values->lapic, kInitialCount) &&
                                                      same(then, values->lapic, kDivide))
    std::copy_n(then.regs + kCurrentCount, 4, values->lapic.regs + kCurrentCount);
  encode_vcpu(*values, cpu, to);
  StateWriter presence;
  const bool runs = started.load(std::memory_order_acquire); // pairs with start()
  presence.put(runs ? !vcpus[cpu].thread.offline() : !starts_offline.test(cpu));
  to.push_back({static_cast<uint32_t>(StateKind::kVcpuActivity), kStateVersion, cpu, presence.take()});
  return {};
}

std::expected<std::vector<StateSection>, Error> Vm::Parts::save_state() {
  if (life.reset_due())
    return std::unexpected(Error{"save state", config.name, "the guest resets itself just now", Status::kBusy});
  const auto noted = note_instant();
  if (!noted)
    return std::unexpected(noted.error());
  Instant& at = **noted;
  std::vector<StateSection> sections;
  {
    const std::lock_guard guard(tree_lock);
    sections.push_back({static_cast<uint32_t>(StateKind::kMachine), kStateVersion, 0, device_tree});
  }
  for (uint32_t cpu = 0, present = vcpus.present(); cpu < present; ++cpu)
    if (auto saved = save_vcpu(cpu, at, sections); !saved)
      return std::unexpected(saved.error());
  const auto controllers = kvm.controllers();
  if (!controllers)
    return std::unexpected(controllers.error());
  encode_controllers(*controllers, sections);
  encode_clock(at.clock, sections);
  for (const StatefulPart& part : stateful_parts()) {
    StateWriter out;
    part.device->save_state(out);
    sections.push_back({static_cast<uint32_t>(part.kind), part.version, part.instance, out.take()});
  }
  return sections;
}

} // namespace stopvisor::vmm
