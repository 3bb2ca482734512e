// SPDX-License-Identifier: Apache-2.0
// Which pages of guest memory were written since the last look, whoever wrote them: docs/adr/0025-dirty-log.md.
//
// KVM logs what vCPUs and KVM itself write (KVM_MEM_LOG_DIRTY_PAGES); what the host writes by itself (device
// workers, callbacks under a stop, a reset) is noted in WrittenPages. A page that either has is dirty.
#pragma once

#include <atomic>
#include <expected>
#include <memory>
#include <string>

#include "vmm/dirty_pages.h"
#include "vmm/error.h"

namespace stopvisor::vmm {

class KvmSystem;
class KvmVm;
class WrittenPages;

// One at a time for each Vm (Vm::log_dirty_pages()).
class DirtyLog {
public:
  virtual ~DirtyLog() = default; // nothing is logged any more. CONTEXT: not under a stop

  // CONTEXT, both: one thread at a time, under a stop or not. RETURNS: kFailed, naming the ioctl.

  // Adds what was written since logging began, or since the last call. A page that is written while this looks is
  // in this answer or in the next one; its content is to be read after the return.
  [[nodiscard]] virtual std::expected<void, Error> take(DirtyPages& into) = 0;
  // Adds the same, for a look that may be the last, under a stop: quick, as nothing is done so that the next write
  // is noticed. Where there is another look after all, take() tells all of it again.
  [[nodiscard]] virtual std::expected<void, Error> read(DirtyPages& into) = 0;
};

// How KVM goes about it: who is told of a page has its next write noticed ...
enum class DirtyLogWay {
  kAtOnce,    // ... from when it was told
  kWhenAsked, // ... from when it says so (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2): a look that is the last need not
  kFromStart, // ... and to begin is quick, with all pages told (KVM_DIRTY_LOG_INITIALLY_SET)
};
// The last of them that KVM has.
[[nodiscard]] DirtyLogWay best_dirty_log_way(const KvmSystem& system) noexcept;

struct DirtyLogParts {
  const KvmVm& kvm;
  const GuestMemory& memory; // that of `kvm`
  WrittenPages& written;     // of it
  std::atomic<bool>& taken;  // while there is one; all of them outlive it
};
// CONTEXT: any thread, not under a stop. RETURNS: kBusy where there is one, kFailed, naming the ioctl.
[[nodiscard]] std::expected<std::unique_ptr<DirtyLog>, Error>
begin_dirty_log(const std::string& operation, const DirtyLogParts& of, DirtyLogWay way);

} // namespace stopvisor::vmm
