// SPDX-License-Identifier: Apache-2.0
// A set of vCPU numbers, the counterpart of the kernel's struct cpumask.
//
// It has a fixed size, so that building and copying one never allocates: masks are used in the stop path.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace stopvisor::stopper {

using CpuId = uint32_t;

// The largest number of participants a stop can have: KVM's usual KVM_CAP_MAX_VCPUS.
inline constexpr CpuId kMaxCpus = 1024;

// CONTEXT: a plain value; no member blocks, allocates or throws. A number that is not below kMaxCpus is
// never in the set, and adding it does nothing.
class CpuMask {
public:
  [[nodiscard]] static constexpr CpuMask of(CpuId cpu) noexcept {
    CpuMask mask;
    mask.set(cpu);
    return mask;
  }
  [[nodiscard]] static constexpr CpuMask first_n(CpuId count) noexcept {
    CpuMask mask;
    for (CpuId cpu = 0; cpu < count; ++cpu)
      mask.set(cpu);
    return mask;
  }

  constexpr void set(CpuId cpu) noexcept {
    if (cpu < kMaxCpus)
      words_[cpu / 64] |= uint64_t{1} << (cpu % 64);
  }
  constexpr void clear(CpuId cpu) noexcept {
    if (cpu < kMaxCpus)
      words_[cpu / 64] &= ~(uint64_t{1} << (cpu % 64));
  }
  [[nodiscard]] constexpr bool test(CpuId cpu) const noexcept {
    return cpu < kMaxCpus && (words_[cpu / 64] >> (cpu % 64) & 1) != 0;
  }
  [[nodiscard]] constexpr bool empty() const noexcept { return *this == CpuMask{}; }
  [[nodiscard]] constexpr CpuId count() const noexcept {
    CpuId total = 0;
    for (const uint64_t word : words_)
      total += static_cast<CpuId>(std::popcount(word));
    return total;
  }
  // The smallest number in the set, kMaxCpus where it is empty (cpumask_first()).
  [[nodiscard]] constexpr CpuId first() const noexcept {
    for (size_t i = 0; i < words_.size(); ++i)
      if (words_[i] != 0)
        return static_cast<CpuId>(i * 64) + static_cast<CpuId>(std::countr_zero(words_[i]));
    return kMaxCpus;
  }
  // Calls visit(cpu) for each member in ascending order (for_each_cpu()).
  template <class Visit>
  constexpr void for_each(Visit&& visit) const {
    for (size_t i = 0; i < words_.size(); ++i)
      for (uint64_t word = words_[i]; word != 0; word &= word - 1)
        visit(static_cast<CpuId>(i * 64) + static_cast<CpuId>(std::countr_zero(word)));
  }
  [[nodiscard]] constexpr CpuMask operator&(const CpuMask& other) const noexcept {
    CpuMask both;
    for (size_t i = 0; i < words_.size(); ++i)
      both.words_[i] = words_[i] & other.words_[i];
    return both;
  }
  constexpr bool operator==(const CpuMask&) const noexcept = default;

private:
  std::array<uint64_t, kMaxCpus / 64> words_{};
};

} // namespace stopvisor::stopper
