// SPDX-License-Identifier: Apache-2.0
// The end of what KVM has a vCPU wait for, before the vCPU is reset.
//
// KVM halts a vCPU until a page is there (a live snapshot's page, one that is not restored yet, one that the host
// has swapped out), and keeps that to itself: first as a request, which the vCPU takes as it enters the guest, so
// that one that is kicked in between still has it to come (KVM_REQ_APF_HALT), then as a halt. A reset has KVM
// forget the page, and with it what would end the halt: such a vCPU would never run again.
#pragma once

#include <expected>

#include "vmm/error.h"
#include "vmm/kvm_vcpu.h"

namespace stopvisor::vmm {

// No guest instruction is executed, and registers are anything afterwards: the caller sets them all.
// CONTEXT: the vCPU's own thread, or under a stop. RETURNS: kFailed, naming the call.
[[nodiscard]] std::expected<void, Error> wake_vcpu(const KvmVcpu& vcpu);

} // namespace stopvisor::vmm
