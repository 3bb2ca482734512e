// SPDX-License-Identifier: Apache-2.0
// Makes the TSC of a vCPU that comes online agree with that of one that has been there.
//
// KVM starts each vCPU's TSC by itself. Where it trusts the host's TSC it gives a late vCPU the offset of the vCPU
// that was set last, which is right until a guest (or a restored snapshot) has moved one vCPU's TSC and not
// another's; where it does not, the late one starts from 0. A guest takes such a difference for a broken clock.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>

#include "vmm/error.h"
#include "vmm/kvm_vcpu.h"

namespace stopvisor::vmm {

inline constexpr uint32_t kMsrTsc = 0x10;       // IA32_TIME_STAMP_COUNTER
inline constexpr uint32_t kMsrTscAdjust = 0x3b; // IA32_TSC_ADJUST

// What aligning needs of a vCPU; a test has its own.
class TscAccess {
public:
  virtual ~TscAccess() = default;
  // The guest's TSC less the host's (KVM_VCPU_TSC_OFFSET, since Linux 5.16); nothing where KVM does not tell.
  [[nodiscard]] virtual std::optional<uint64_t> offset() const = 0;
  [[nodiscard]] virtual bool set_offset(uint64_t offset) = 0;
  [[nodiscard]] virtual std::expected<uint64_t, Error> msr(uint32_t index) const = 0;
  [[nodiscard]] virtual std::expected<void, Error> set_msr(uint32_t index, uint64_t value) = 0;
};

// A KVM vCPU's. CONTEXT: as KvmVcpu::registers().
class KvmTscAccess final : public TscAccess {
public:
  explicit KvmTscAccess(const KvmVcpu& vcpu) : vcpu_(vcpu) {}
  [[nodiscard]] std::optional<uint64_t> offset() const override;
  [[nodiscard]] bool set_offset(uint64_t offset) override;
  [[nodiscard]] std::expected<uint64_t, Error> msr(uint32_t index) const override;
  [[nodiscard]] std::expected<void, Error> set_msr(uint32_t index, uint64_t value) override;

private:
  const KvmVcpu& vcpu_;
};

// Gives `newcomer` the TSC of `reference`: exactly, where KVM tells offsets; else as near as reading one and
// writing the other allows (some microseconds; KVM itself takes what is that near for the same). Also its
// IA32_TSC_ADJUST, which guests compare between CPUs, and "repair" by moving the TSC. CONTEXT: neither vCPU runs.
// RETURNS: kFailed, naming the ioctl.
[[nodiscard]] std::expected<void, Error> align_tsc(const TscAccess& reference, TscAccess& newcomer);

} // namespace stopvisor::vmm
