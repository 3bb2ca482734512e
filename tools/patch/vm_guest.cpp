// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/vm_guest.h"

#include <cstring>

#include "vmm/control/guest_access.h"

namespace stopvisor::patch {

std::expected<void, vmm::Error> VmGuest::under_stop(const Wanted& wanted, Body body) {
  const auto call = [&](const Kernel& kernel) { return body({kernel, vm_.stop_machine().sequence()}); };
  if (wanted.kernel)
    return knowledge_.with_kernel(wanted.operation, wanted.symbols, wanted.deadline, call);
  return vmm::under_stop(vm_, wanted.operation, wanted.deadline, [&] { return call(nullptr); });
}

void VmGuest::expect_registers(bool expected) noexcept {
  vmm::RegisterWishes& wishes = vm_.register_wishes();
  expected ? wishes.add() : wishes.remove();
}

std::optional<StopTimes> VmGuest::times_of(uint64_t sequence) {
  const stopper::StopReport report = vm_.stops().last_report();
  if (report.sequence != sequence || report.end != stopper::StopEnd::kCompleted)
    return std::nullopt;
  return StopTimes{sequence, report.all_held_ns - report.requested_ns, report.hold_ns(),
                   report.participants.size()};
}

bool VmGuest::write(vmm::Gpa gpa, std::span<std::byte> to, std::span<const std::byte> from) noexcept {
  std::memcpy(to.data(), from.data(), to.size());
  vm_.written_pages().note(gpa, to.size()); // after the bytes
  return true;
}

} // namespace stopvisor::patch
