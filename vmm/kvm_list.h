// SPDX-License-Identifier: Apache-2.0
// KVM's structures that end in an array of a length given in their head, and the ioctls that take them.
//
// Some versions of linux/kvm.h give these structures another layout in C++ than in C (an empty member before the
// array takes a byte there), and with it their ioctls other numbers. So their heads and numbers are spelt out here,
// as the kernel has them; linux/kvm.h's own must not be used.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace stopvisor::vmm {

// `Head` is followed by `count` objects of `Entry`. Zeroed; the head's count field is the caller's to set.
template <class Head, class Entry>
class KvmList {
public:
  explicit KvmList(size_t count)
      : count_(count), bytes_(std::make_unique<std::byte[]>(sizeof(Head) + count * sizeof(Entry))) {}

  [[nodiscard]] Head* head() noexcept { return reinterpret_cast<Head*>(bytes_.get()); }
  [[nodiscard]] std::span<Entry> entries() noexcept {
    return {reinterpret_cast<Entry*>(bytes_.get() + sizeof(Head)), count_};
  }

private:
  size_t count_;
  std::unique_ptr<std::byte[]> bytes_;
};

// A count and padding: struct kvm_cpuid2, struct kvm_msrs. KVM API, 4.20, 4.46, 4.18, 4.19.
struct KvmCountAndPad {
  uint32_t count;
  uint32_t pad;
};
using KvmCpuidList = KvmList<KvmCountAndPad, kvm_cpuid_entry2>;
using KvmMsrs = KvmList<KvmCountAndPad, kvm_msr_entry>;
// struct kvm_msr_list. KVM API, 4.3.
struct KvmCount {
  uint32_t count;
};
using KvmMsrIndices = KvmList<KvmCount, uint32_t>;
// struct kvm_signal_mask, followed by a kernel's set of signals. KVM API, 4.17.
struct KvmLength {
  uint32_t bytes;
};
// struct kvm_xsave without the array that may follow. KVM API, 4.42, 4.43, 4.134.
struct KvmXsave {
  uint32_t region[1024];
};
static_assert(sizeof(KvmXsave) == 4096);
static_assert(sizeof(KvmCountAndPad) == 8 && sizeof(KvmCount) == 4 && sizeof(KvmLength) == 4);
static_assert(sizeof(kvm_cpuid_entry2) == 40 && sizeof(kvm_msr_entry) == 16);

inline constexpr unsigned long kKvmGetMsrIndexList = _IOWR(KVMIO, 0x02, KvmCount);
inline constexpr unsigned long kKvmGetSupportedCpuid = _IOWR(KVMIO, 0x05, KvmCountAndPad);
inline constexpr unsigned long kKvmGetMsrs = _IOWR(KVMIO, 0x88, KvmCountAndPad);
inline constexpr unsigned long kKvmSetMsrs = _IOW(KVMIO, 0x89, KvmCountAndPad);
inline constexpr unsigned long kKvmSetSignalMask = _IOW(KVMIO, 0x8b, KvmLength);
inline constexpr unsigned long kKvmGetXsave = _IOR(KVMIO, 0xa4, KvmXsave);
inline constexpr unsigned long kKvmSetXsave = _IOW(KVMIO, 0xa5, KvmXsave);
inline constexpr unsigned long kKvmGetXsave2 = _IOR(KVMIO, 0xcf, KvmXsave);
inline constexpr unsigned long kKvmSetCpuid2 = _IOW(KVMIO, 0x90, KvmCountAndPad);
inline constexpr unsigned long kKvmGetCpuid2 = _IOWR(KVMIO, 0x91, KvmCountAndPad);

} // namespace stopvisor::vmm
