// SPDX-License-Identifier: Apache-2.0
#include "vmm/state/wall_clock.h"

#include <asm/kvm_para.h>

#include "vmm/state/vcpu_msrs.h"

namespace stopvisor::vmm {

// The old number and the new one name the same register, and the same one of all vCPUs.
WallClockPage::WallClockPage(std::span<const kvm_msr_entry> msrs, const GuestMemory& memory) noexcept {
  for (const kvm_msr_entry& msr : msrs)
    if ((msr.index == MSR_KVM_WALL_CLOCK || msr.index == MSR_KVM_WALL_CLOCK_NEW) && msr.data != 0)
      msr_ = msr;
  readable_ = msr_.data != 0 && memory.read(Gpa{msr_.data}, saved_);
}

std::expected<void, Error> WallClockPage::restore(WallClock choice, int fd, const GuestMemory& memory,
                                                  WrittenPages& written) const {
  if (!readable_)
    return {};
  if (choice == WallClock::kHost) {
    if (auto done = set_msrs(fd, {&msr_, 1}); !done)
      return done;
  } else {
    (void)memory.write(Gpa{msr_.data}, saved_); // it could be read
  }
  written.note(Gpa{msr_.data}, saved_.size());
  return {};
}

} // namespace stopvisor::vmm
