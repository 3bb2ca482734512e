// SPDX-License-Identifier: Apache-2.0
// One KVM virtual machine: its memory slots, interrupt controllers and timer.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstdint>
#include <expected>
#include <optional>

#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm_system.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

class KvmVm {
public:
  // Makes the VM with an in-kernel local APIC, I/O APIC and PICs, and a PIT where KVM has one, and gives it
  // `memory`, which must outlive it. CONTEXT: any thread. RETURNS: kFailed, naming the ioctl that failed.
  [[nodiscard]] static std::expected<KvmVm, Error> create(const KvmSystem& system, uint32_t cpus,
                                                          const GuestMemory& memory);

  [[nodiscard]] bool has_pit() const noexcept { return initial_.pit.has_value(); }

  // KVM_CREATE_VCPU; `cpu` becomes its APIC id. RETURNS: kFailed.
  [[nodiscard]] std::expected<UniqueFd, Error> create_vcpu(uint32_t cpu) const;

  // Sets one interrupt line (KVM_IRQ_LINE). CONTEXT: any thread, does not block; a leaf.
  void set_irq_line(uint32_t gsi, bool level) const noexcept;

  // Puts interrupt controllers and timer back to their state after create(). CONTEXT: under a stop.
  // RETURNS: kFailed, naming the ioctl.
  [[nodiscard]] std::expected<void, Error> reset() const;

private:
  // What reset() goes back to. One kvm_irqchip each: master PIC, slave PIC, I/O APIC.
  struct State {
    std::array<kvm_irqchip, 3> irqchips{};
    std::optional<kvm_pit_state2> pit;
  };

  explicit KvmVm(UniqueFd fd) noexcept : fd_(std::move(fd)) {}
  [[nodiscard]] std::expected<void, Error> create_controllers(const KvmSystem& system, uint32_t cpus);
  [[nodiscard]] std::expected<void, Error> add_memory(const GuestMemory& memory) const;
  [[nodiscard]] std::expected<void, Error> remember();

  UniqueFd fd_;
  State initial_;
};

} // namespace stopvisor::vmm
