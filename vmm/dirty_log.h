// SPDX-License-Identifier: Apache-2.0
// Which pages of guest memory were written since the last look, whoever wrote them.
//
// KVM logs what vCPUs and KVM itself write (KVM_MEM_LOG_DIRTY_PAGES); what the host writes by itself (device
// workers, callbacks under a stop, a reset) is noted in WrittenPages. A page that either has is dirty.
#pragma once

#include <expected>
#include <memory>
#include <string_view>

#include "vmm/dirty_pages.h"
#include "vmm/error.h"

namespace stopvisor::vmm {

// One at a time for each Vm (Vm::log_dirty_pages()).
class DirtyLog {
public:
  virtual ~DirtyLog() = default; // nothing is logged any more. CONTEXT: not under a stop
  // Adds what was written since logging began, or since the last call. A page that is written while this looks is
  // in this answer or in the next one. CONTEXT: one thread at a time, under a stop or not. RETURNS: kFailed, naming
  // the ioctl.
  [[nodiscard]] virtual std::expected<void, Error> take(DirtyPages& into) = 0;
};

} // namespace stopvisor::vmm
