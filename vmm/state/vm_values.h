// SPDX-License-Identifier: Apache-2.0
// What a VM has besides vCPUs and devices of ours: KVM's interrupt controllers, timer and clock; as values and as
// sections.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstdint>
#include <expected>
#include <optional>
#include <vector>

#include "vmm/error.h"
#include "vmm/state/sections.h"

namespace stopvisor::vmm {

// Interrupt controllers by their KVM_IRQCHIP_*: master PIC, slave PIC, I/O APIC.
struct ControllerValues {
  std::array<kvm_irqchip, 3> irqchips{};
  std::optional<kvm_pit_state2> pit;
};

struct ClockValues {
  uint64_t kvmclock_ns = 0;
  uint64_t realtime_ns = 0; // the host's CLOCK_REALTIME then
};

// CONTEXT, these: any thread. RETURNS: kFailed, naming the section that cannot be.
void encode_controllers(const ControllerValues& values, std::vector<StateSection>& to);
[[nodiscard]] std::expected<ControllerValues, Error> decode_controllers(StateSections& from);
void encode_clock(const ClockValues& values, std::vector<StateSection>& to);
[[nodiscard]] std::expected<ClockValues, Error> decode_clock(StateSections& from);

} // namespace stopvisor::vmm
