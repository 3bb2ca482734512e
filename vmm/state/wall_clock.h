// SPDX-License-Identifier: Apache-2.0
// The wall clock of kvmclock: twelve bytes of guest memory that tell when the guest's clock was zero.
//
// KVM writes them from the host's clocks, once, whenever the MSR with their place is written: by a guest that asks
// for the time, and by whoever restores the MSR (Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_WALL_CLOCK_NEW).
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstddef>
#include <expected>
#include <span>

#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/restore_choices.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm {

class WallClockPage {
public:
  // None, where the guest has not asked for it.
  WallClockPage() = default;
  // CONTEXT: `msrs` are a vCPU's that are not given to KVM yet, and `memory` is as it was saved.
  WallClockPage(std::span<const kvm_msr_entry> msrs, const GuestMemory& memory) noexcept;

  // CONTEXT: once the vCPU behind `fd` has its MSRs and the machine its clock, which KVM reckons from; it does not
  // run. RETURNS: kFailed where KVM does not take the MSR again.
  [[nodiscard]] std::expected<void, Error> restore(WallClock choice, int fd, const GuestMemory& memory,
                                                   WrittenPages& written) const;

private:
  kvm_msr_entry msr_{};
  bool readable_ = false; // a guest may name any place
  std::array<std::byte, 12> saved_{};
};

} // namespace stopvisor::vmm
