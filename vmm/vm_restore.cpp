// SPDX-License-Identifier: Apache-2.0
// A state, put into a machine that was made alike and has not run.
//
// The order of everything here, with its reasons: docs/explanation/state.md.
#include <sys/ioctl.h>

#include <cerrno>
#include <string>
#include <utility>

#include "vmm/absent_memory.h"
#include "vmm/acpi/platform.h"
#include "vmm/state/cpu_features.h"
#include "vmm/state/kvm_places.h"
#include "vmm/state/machine_match.h"
#include "vmm/state/sections.h"
#include "vmm/state/vcpu_access.h"
#include "vmm/state/wall_clock.h"
#include "vmm/tsc.h"
#include "vmm/vm_boot.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {
namespace {

// KVM's own tolerance between the frequencies of two hosts (kvm.tsc_tolerance_ppm).
constexpr uint64_t kTolerancePpm = 250;

Error restore_error(std::string object, std::string reason, Status status = Status::kFailed) {
  return Error{"restore", std::move(object), std::move(reason), status};
}

// The guest was told its frequency, or has measured it, and goes by it for ever.
std::expected<void, Error> set_frequency(const KvmVcpu& vcpu, const KvmSystem& system, uint32_t khz) {
  const int host = ::ioctl(vcpu.fd(), KVM_GET_TSC_KHZ, 0);
  if (khz == 0 || host <= 0)
    return {};
  const uint64_t off =
      khz > static_cast<uint32_t>(host) ? khz - static_cast<uint32_t>(host) : static_cast<uint32_t>(host) - khz;
  if (off * 1'000'000 <= kTolerancePpm * khz)
    return {};
  if (system.capability(KVM_CAP_TSC_CONTROL) == 0)
    return std::unexpected(restore_error("TSC",
                                         "the guest's runs at " + std::to_string(khz) + " kHz, this host's at " +
                                             std::to_string(host) + " kHz, and this KVM cannot scale it",
                                         Status::kRefused));
  if (::ioctl(vcpu.fd(), KVM_SET_TSC_KHZ, static_cast<unsigned long>(khz)) != 0)
    return std::unexpected(system_error("restore", "KVM_SET_TSC_KHZ", errno));
  return {};
}

} // namespace

std::expected<void, Error> Vm::Parts::restore_devices(StateSections& from) {
  for (const StatefulPart& part : stateful_parts())
    if (auto done = from.take(part.kind, part.version, part.instance,
                              [&](StateReader& in) { part.device->restore_state(in); });
        !done)
      return done;
  return {};
}

// Who waits for a page inside KVM cannot be told that it is bad: so it is asked for first.
std::expected<void, Error> Vm::Parts::bring_needed(std::span<const StateSection> sections) {
  if (!absent || has_needed)
    return {};
  auto from = StateSections::index(sections);
  if (!from)
    return std::unexpected(from.error());
  const std::byte* const origin = memory.slots().front().host; // one mapping, see there
  std::vector<uint64_t> offsets;
  const auto add = [&](uint64_t gpa) {
    if (const auto at = memory.range(Gpa{gpa}, 1); !at.empty())
      offsets.push_back(static_cast<uint64_t>(at.data() - origin));
  };
  add(acpi::kGenerationIdGpa);
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu) {
    const auto values = decode_vcpu(*from, cpu);
    if (!values)
      return std::unexpected(values.error());
    for (const KvmPlace& place : kvm_places_of(*values)) {
      add(place.begin.value);
      add(place.begin.value + place.bytes - 1);
    }
  }
  auto brought = absent->bring(std::move(offsets));
  has_needed = brought.has_value();
  return brought;
}

// CONTEXT: interrupt controllers are restored.
std::expected<void, Error> Vm::Parts::restore_vcpus(StateSections& from, WallClockPage& wall_clock) {
  std::vector<VcpuValues> all;
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu) {
    auto values = decode_vcpu(from, cpu);
    if (!values)
      return std::unexpected(values.error());
    if (auto fits = check_cpu_features(values->cpuid, vcpus[cpu].initial.cpuid()); !fits)
      return fits;
    bool online = false;
    if (auto done = from.take(StateKind::kVcpuActivity, kStateVersion, cpu,
                              [&](StateReader& in) { online = in.get_flag(); });
        !done)
      return done;
    if (!online && cpu == 0)
      return std::unexpected(wrong_section(StateKind::kVcpuActivity, 0, "it is never offline"));
    if (!online)
      starts_offline.set(cpu);
    all.push_back(std::move(*values));
  }
  wall_clock = WallClockPage(all[0].msrs, memory); // before KVM writes to it
  // Frequency, then value, of all of them at one instant; then what is reckoned in it (the deadline, an MSR).
  KvmTscAccess first(vcpus[0].thread.vcpu());
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu)
    if (auto done = set_frequency(vcpus[cpu].thread.vcpu(), system, all[cpu].tsc_khz); !done)
      return done;
  const auto now = first.msr(kMsrTsc);
  if (!now)
    return std::unexpected(now.error());
  const auto offset = first.offset();
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu) {
    KvmTscAccess tsc(vcpus[cpu].thread.vcpu());
    if (!offset || !tsc.set_offset(*offset + (all[cpu].tsc - *now)))
      if (auto done = tsc.set_msr(kMsrTsc, all[cpu].tsc); !done)
        return done;
  }
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu)
    if (auto done = write_vcpu(vcpus[cpu].thread.vcpu(), system, all[cpu]); !done)
      return std::unexpected(restore_error("vCPU " + std::to_string(cpu), done.error().text()));
  return {};
}

// CONTEXT: before anything is changed.
std::expected<void, Error> Vm::Parts::restore_machine(StateSections& from) {
  const uint32_t saved_cpus = from.count(StateKind::kVcpuRegs);
  if (from.has(StateKind::kMachine, 0)) {
    std::vector<std::byte> saved;
    if (auto done = from.take(StateKind::kMachine, kStateVersion, 0,
                              [&](StateReader& in) {
                                const auto bytes = in.get_bytes(in.left());
                                saved.assign(bytes.begin(), bytes.end());
                              });
        !done)
      return done;
    if (auto alike = check_machine({saved, saved_cpus}, {device_tree, config.cpus}); !alike)
      return alike;
    device_tree = std::move(saved); // what this guest was told
  }
  if (saved_cpus != config.cpus)
    return std::unexpected(restore_error(config.name, "it has " + std::to_string(config.cpus) + " vCPUs, and " +
                                                          std::to_string(saved_cpus) + " were saved"));
  return {};
}

// CONTEXT: everything else is restored. The event's interrupt goes through the interrupt controllers.
std::expected<void, Error> Vm::Parts::renew_generation() {
  const auto generation = random_generation("restore");
  if (!generation)
    return std::unexpected(generation.error());
  const Gpa place{acpi::kGenerationIdGpa};
  if (!memory.write(place, *generation))
    return std::unexpected(restore_error("VM generation ID", "memory ends before its place below 1 MiB"));
  written_pages.note(place, generation->size());
  acpi_power.tell_generation();
  return {};
}

std::expected<void, Error> Vm::Parts::restore_state(std::span<const StateSection> sections,
                                                    const RestoreChoices& choices) {
  if (!config.bare || started.load(std::memory_order_acquire)) // pairs with start()
    return std::unexpected(restore_error(config.name, "it was not made to be restored into", Status::kUsage));
  if (auto made = check_made("restore"); !made)
    return made;
  if (auto brought = bring_needed(sections); !brought)
    return brought;
  auto from = StateSections::index(sections);
  if (!from)
    return std::unexpected(from.error());
  from->pass_over(StateKind::kPatchLedger, 0);
  if (auto done = restore_machine(*from); !done)
    return done;
  const auto controllers = decode_controllers(*from);
  if (!controllers)
    return std::unexpected(controllers.error());
  const auto clock = decode_clock(*from);
  if (!clock)
    return std::unexpected(clock.error());
  if (auto done = restore_devices(*from); !done)
    return done;
  if (auto done = kvm.set_irqchips(*controllers); !done)
    return done;
  WallClockPage wall_clock;
  if (auto done = restore_vcpus(*from, wall_clock); !done)
    return done;
  if (auto done = from->finish(); !done)
    return done;
  if (auto there = kvm.await_pit(); !there)
    return there;
  if (auto done = kvm.set_pit(*controllers); !done)
    return done;
  if (auto done = kvm.set_clock(*clock); !done)
    return done;
  if (auto done = wall_clock.restore(choices.wall_clock, vcpus[0].thread.vcpu().fd(), memory, written_pages); !done)
    return done;
  for (const auto& slot : slots)
    slot->transport().raise_again();
  return choices.new_generation ? renew_generation() : std::expected<void, Error>();
}

} // namespace stopvisor::vmm
