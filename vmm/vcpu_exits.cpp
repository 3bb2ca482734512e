// SPDX-License-Identifier: Apache-2.0
// The exits of a vCPU: what the guest did that KVM leaves to us, and what becomes of the VM by it.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include "vmm/exit_report.h"
#include "vmm/vcpu_thread.h"

namespace stopvisor::vmm {

// Rule 2. An exit for I/O or MMIO comes in the middle of an instruction: its result goes into registers, and RIP
// moves on, when KVM_RUN is entered again. With immediate_exit set KVM does just that and comes back (KVM API, 5,
// on KVM_EXIT_IO). A string instruction may need several accesses: each is served, and the next asked for.
void VcpuThread::finish_instruction() noexcept {
  while (incomplete_) {
    incomplete_ = false;
    vcpu_.set_immediate_exit(true); // cleared at the top of the loop, which then looks for work again
    const int error = vcpu_.enter(around_.register_wishes.any());
    if (error == 0)
      serve_exit();
    else if (error != EINTR && error != EAGAIN)
      fail(EndKind::kVmmError, std::string("KVM_RUN failed: ") + std::strerror(error));
  }
}

void VcpuThread::serve_exit() noexcept {
  switch (vcpu_.run().exit_reason) {
  case KVM_EXIT_IO:
    return serve_io();
  case KVM_EXIT_MMIO:
    return serve_mmio();
  case KVM_EXIT_HLT: // the in-kernel APIC waits for the interrupt itself; without a wait a guest may wake any time
  case KVM_EXIT_INTR:
  case KVM_EXIT_IRQ_WINDOW_OPEN:
    return;
  case KVM_EXIT_SYSTEM_EVENT:
    return serve_system_event();
  case KVM_EXIT_SHUTDOWN:
    return fail(EndKind::kTripleFault, describe_exit(vcpu_.run()));
  default:
    return fail(EndKind::kVmmError, describe_exit(vcpu_.run()));
  }
}

// `count` accesses of `size` bytes to one port: more than one for string instructions (KVM API, 5).
void VcpuThread::serve_io() noexcept {
  const auto& io = vcpu_.run().io;
  std::span<std::byte> data = vcpu_.io_data();
  const uint16_t port = io.port;
  const size_t size = io.size;
  const bool out = io.direction == KVM_EXIT_IO_OUT;
  for (; size != 0 && data.size() >= size; data = data.subspan(size)) {
    if (out)
      around_.ports.write(port, data.first(size));
    else
      around_.ports.read(port, data.first(size));
  }
  incomplete_ = true;
}

void VcpuThread::serve_mmio() noexcept {
  auto& mmio = vcpu_.run().mmio;
  const size_t length = std::min<size_t>(mmio.len, sizeof mmio.data);
  const auto data = std::as_writable_bytes(std::span(mmio.data)).first(length);
  if (mmio.is_write != 0)
    around_.mmio.write(mmio.phys_addr, data);
  else
    around_.mmio.read(mmio.phys_addr, data);
  incomplete_ = true;
}

void VcpuThread::serve_system_event() noexcept {
  switch (vcpu_.run().system_event.type) {
  case KVM_SYSTEM_EVENT_SHUTDOWN:
    request_ = GuestRequest::kPowerOff;
    return;
  case KVM_SYSTEM_EVENT_RESET:
    request_ = GuestRequest::kReset;
    return;
  case KVM_SYSTEM_EVENT_CRASH:
    request_ = GuestRequest::kCrash;
    return;
  default:
    return fail(EndKind::kVmmError, describe_exit(vcpu_.run()));
  }
}

// Acts on what the guest asked for by the exit that was served. It runs no further guest code.
void VcpuThread::serve_request() noexcept {
  switch (std::exchange(request_, GuestRequest::kNone)) {
  case GuestRequest::kNone:
    return;
  case GuestRequest::kPowerOff:
    return around_.life.end({EndKind::kPowerOff, ""});
  case GuestRequest::kReset:
    // Shut before the request is made: the reset opens it, and may come at once. G1.
    gate_.fetch_and(~kGateOpen, std::memory_order_acq_rel);
    return around_.life.request_reset();
  case GuestRequest::kCrash:
    finish_instruction();
    return fail(EndKind::kCrash, "the guest reported a crash", around_.crash_note());
  }
}

// Ends the VM with a report of this vCPU. The caller returns to the loop, which leaves.
void VcpuThread::fail(EndKind kind, const std::string& reason, const std::string& note) noexcept {
  around_.life.end({kind, fatal_report(cpu_, reason, vcpu_.registers(), around_.memory) + note});
}

} // namespace stopvisor::vmm
