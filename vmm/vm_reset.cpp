// SPDX-License-Identifier: Apache-2.0
// A guest's reset: the machine goes back to its start in place, under a stop.
#include <utility>

#include "vmm/vm_boot.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {

void Vm::Parts::serve_resets() noexcept {
  while (life.await_reset())
    if (auto done = reset(); !done)
      life.end({EndKind::kVmmError, done.error().message() + "\n"});
}

std::expected<void, Error> Vm::Parts::reset() {
  auto files = BootFiles::read(config);
  if (!files)
    return std::unexpected(files.error());
  auto tree = describe_vm(config, memory, kvm.has_pit(), *files);
  if (!tree)
    return std::unexpected(tree.error());
  std::expected<void, Error> result;
  auto stop = stops.run([&](stopper::StopContext&) {
    result = reset_held(*files, *tree);
    return 0;
  });
  if (!stop && stop.error().code != stopper::StopErrc::kEnded)
    return std::unexpected(explain("reset", stop.error()));
  return result;
}

// CONTEXT: under a stop. Interrupt controllers before local APICs: an interrupt on its way between them ends in a
// local APIC that is reset after it. vCPUs before memory: some of their MSRs let KVM write to it.
std::expected<void, Error> Vm::Parts::reset_held(const BootFiles& files, std::span<const std::byte> tree) {
  ports.reset_devices();
  mmio.reset_devices();
  if (auto done = kvm.reset(); !done)
    return done;
  for (uint32_t cpu = 0; cpu < config.cpus; ++cpu)
    if (auto done = initial[cpu].restore(vcpus[cpu]->vcpu()); !done)
      return done;
  if (auto done = memory.clear(); !done)
    return done;
  if (auto done = load(files, tree); !done)
    return done;
  resets.fetch_add(1, std::memory_order_relaxed); // a counter by itself
  life.reset_done();
  for (const auto& vcpu : vcpus)
    vcpu->open_gate();
  return {};
}

} // namespace stopvisor::vmm
