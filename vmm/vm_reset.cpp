// SPDX-License-Identifier: Apache-2.0
// A guest's reset: the machine goes back to its start in place, under a stop.
#include <utility>

#include "vmm/vm_boot.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {

GuestRequestSink Vm::Parts::requests_of(const char* by) {
  return [this, by](GuestRequest request) {
    if (request == GuestRequest::kReset)
      reset_by.store(by, std::memory_order_relaxed); // for people to read: of two at once either will do
    VcpuThread::request_from_current(request);
  };
}

void Vm::Parts::tell(const std::string& event) const {
  if (listener)
    listener(event);
}

void Vm::Parts::serve_resets() noexcept {
  while (life.await_reset())
    if (auto done = reset(); !done)
      life.end({EndKind::kVmmError, done.error().message() + "\n"});
    else if (const char* by = reset_by.load(std::memory_order_relaxed); by != nullptr) // as it was stored
      tell(std::string("the guest reset the machine, by its ") + by);
}

std::expected<void, Error> Vm::Parts::reset() {
  auto files = BootFiles::read(config);
  if (!files)
    return std::unexpected(files.error());
  // A vCPU that writes to a protected page is halted by KVM until it may go on. Kicked at that moment, it keeps a
  // request to halt over the reset (KVM_REQ_APF_HALT), and who would end that halt is forgotten with INIT: it would
  // never run again. So before anybody is kicked there is no protected page any more.
  freeze_place.fail("the guest reset itself meanwhile");
  std::expected<void, Error> result;
  auto stop = stops.run([&](stopper::StopContext&) {
    result = reset_held(*files);
    return 0;
  });
  if (!stop && stop.error().code != stopper::StopErrc::kEnded)
    return std::unexpected(explain("reset", stop.error()));
  return result;
}

// CONTEXT: under a stop. Interrupt controllers before local APICs: an interrupt on its way between them ends in a
// local APIC that is reset after it. vCPUs before memory: some of their MSRs let KVM write to it.
std::expected<void, Error> Vm::Parts::reset_held(const BootFiles& files) {
  ports.reset_devices();
  mmio.reset_devices();
  if (auto done = kvm.reset(); !done)
    return done;
  // The stop holds the hotplug lock's read side: nobody comes, and those who are offline have nobody using them.
  const uint32_t present = vcpus.present();
  for (uint32_t cpu = 0; cpu < present; ++cpu)
    if (auto done = vcpus[cpu].initial.restore(vcpus[cpu].thread.vcpu()); !done)
      return done;
  // Clearing takes away protection and contents alike: a live snapshot would not learn of either.
  freeze_place.fail("the guest reset itself meanwhile");
  if (absent)
    absent->forget();
  auto cleared = memory.clear();
  freeze_place.fail("the guest reset itself meanwhile"); // one that has begun since then
  if (!cleared)
    return cleared;
  auto tree = describe_vm(config, wanted_cpus(), memory, kvm.has_pit(), files);
  if (!tree)
    return std::unexpected(tree.error());
  auto loaded = load(files, *tree);
  written_pages.note_all();
  if (!loaded)
    return loaded;
  {
    const std::lock_guard guard(tree_lock);
    device_tree = std::move(*tree);
  }
  resets.fetch_add(1, std::memory_order_relaxed); // a counter by itself
  life.reset_done();
  for (uint32_t cpu = 0; cpu < present; ++cpu)
    vcpus[cpu].thread.open_gate();
  return {};
}

} // namespace stopvisor::vmm
