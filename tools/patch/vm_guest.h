// SPDX-License-Identifier: Apache-2.0
// A VM as the patch engine's guest.
#pragma once

#include "tools/patch/guest.h"
#include "vmm/control/guest_knowledge.h"
#include "vmm/vm.h"

namespace stopvisor::patch {

class VmGuest final : public Guest {
public:
  // Both must outlive the object.
  VmGuest(vmm::Vm& vm, vmm::GuestKnowledge& knowledge) : vm_(vm), knowledge_(knowledge) {}

  [[nodiscard]] std::expected<void, vmm::Error> under_stop(const Wanted& wanted, Body body) override;
  void expect_registers(bool expected) noexcept override;
  [[nodiscard]] std::optional<StopTimes> times_of(uint64_t sequence) override;
  [[nodiscard]] const vmm::GuestMemory& memory() const noexcept override { return vm_.memory(); }
  [[nodiscard]] uint64_t resets() const noexcept override { return vm_.resets(); }
  [[nodiscard]] uint32_t cpus() const noexcept override { return vm_.cpu_count(); }
  [[nodiscard]] std::expected<vmm::Registers, vmm::Error> registers(uint32_t cpu) const override {
    return vm_.registers(cpu, false);
  }
  [[nodiscard]] bool waits_to_start(uint32_t cpu) const override {
    const auto all = vm_.registers(cpu);
    return all && all->waiting;
  }
  [[nodiscard]] bool write(vmm::Gpa gpa, std::span<std::byte> to,
                           std::span<const std::byte> from) noexcept override;

private:
  vmm::Vm& vm_;
  vmm::GuestKnowledge& knowledge_;
};

} // namespace stopvisor::patch
