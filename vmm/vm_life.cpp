// SPDX-License-Identifier: Apache-2.0
#include "vmm/vm_life.h"

#include <utility>

namespace stopvisor::vmm {

void VmLife::end(VmEnd reason) noexcept {
  {
    const std::lock_guard guard(lock_);
    if (reason_)
      return;
    reason_ = std::move(reason);
    // E1, release: pairs with ending(). Before let_out_'s kicks, as work is queued before its kick: a vCPU thread
    // sees it when it looks before KVM_RUN, or the kick comes after it looked and ends KVM_RUN.
    ending_.store(true, std::memory_order_release);
  }
  let_out_();
  changed_.notify_all();
}

void VmLife::await_end() {
  std::unique_lock guard(lock_);
  changed_.wait(guard, [this] { return reason_.has_value(); });
}

VmEnd VmLife::reason() const {
  const std::lock_guard guard(lock_);
  return reason_.value_or(VmEnd{});
}

void VmLife::request_reset() noexcept {
  {
    const std::lock_guard guard(lock_);
    reset_due_ = true;
  }
  changed_.notify_all();
}

bool VmLife::await_reset() {
  std::unique_lock guard(lock_);
  changed_.wait(guard, [this] { return reason_.has_value() || reset_due_; });
  return !reason_.has_value();
}

bool VmLife::reset_due() const {
  const std::lock_guard guard(lock_);
  return reset_due_;
}

void VmLife::reset_done() noexcept {
  const std::lock_guard guard(lock_);
  reset_due_ = false;
}

} // namespace stopvisor::vmm
