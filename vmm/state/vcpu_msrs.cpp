// SPDX-License-Identifier: Apache-2.0
#include "vmm/state/vcpu_msrs.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>

#include "vmm/firmware_msrs.h"
#include "vmm/kvm_list.h"
#include "vmm/tsc.h"

namespace stopvisor::vmm {
namespace {

// Hyper-V's registers, which KVM gives to us though this machine has none: some of them are clocks.
constexpr bool is_of_hyperv(uint32_t msr) {
  return msr >= 0x4000'0000 && msr < 0x4000'0200;
}

// Not listed by every KVM: MTRRs (Intel SDM volume 3, 12.11), and the banks of machine checks (16.3).
constexpr uint32_t kFirstVariableMtrr = 0x200, kVariableMtrrs = 16;
constexpr std::array<uint32_t, 11> kFixedMtrrs{0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                               0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
constexpr uint32_t kFirstMachineCheck = 0x400, kMachineChecks = 32 * 4;

std::vector<uint32_t> candidates(const KvmSystem& system) {
  std::vector<uint32_t> indices(system.state_msrs().begin(), system.state_msrs().end());
  indices.insert(indices.end(), {kMsrTscAdjust, kMsrMtrrDefaultType});
  indices.insert(indices.end(), kFixedMtrrs.begin(), kFixedMtrrs.end());
  for (uint32_t msr = kFirstVariableMtrr; msr < kFirstVariableMtrr + kVariableMtrrs; ++msr)
    indices.push_back(msr);
  for (uint32_t msr = kFirstMachineCheck; msr < kFirstMachineCheck + kMachineChecks; ++msr)
    indices.push_back(msr);
  std::ranges::sort(indices);
  const auto twice = std::ranges::unique(indices);
  indices.erase(twice.begin(), twice.end());
  std::erase_if(indices, [](uint32_t msr) { return msr == kMsrTsc || is_of_hyperv(msr); });
  return indices;
}

Error ioctl_failed(const char* name) {
  return system_error("vCPU state", name, errno);
}

Error refused_msr(const kvm_msr_entry& msr) {
  char text[96];
  std::snprintf(text, sizeof text, "this KVM does not take 0x%" PRIx64, static_cast<uint64_t>(msr.data));
  char name[32];
  std::snprintf(name, sizeof name, "MSR 0x%x", msr.index);
  return Error{"restore", name, text, Status::kFailed};
}

} // namespace

std::expected<std::vector<uint32_t>, Error> state_msrs_of(int fd, const KvmSystem& system) {
  const std::vector<uint32_t> indices = candidates(system);
  std::vector<uint32_t> given;
  std::vector<kvm_msr_entry> values;
  for (std::span<const uint32_t> left(indices); !left.empty();) {
    const auto got = get_msrs(fd, left, values);
    if (!got)
      return std::unexpected(got.error());
    given.insert(given.end(), left.begin(), left.begin() + static_cast<ptrdiff_t>(*got));
    left = left.subspan(std::min(*got + 1, left.size())); // KVM stops at the first that this CPU has not
  }
  return given;
}

std::expected<size_t, Error> get_msrs(int fd, std::span<const uint32_t> indices, std::vector<kvm_msr_entry>& to) {
  KvmMsrs list(indices.size());
  list.head()->count = static_cast<uint32_t>(indices.size());
  for (size_t i = 0; i < indices.size(); ++i)
    list.entries()[i].index = indices[i];
  const int got = ::ioctl(fd, kKvmGetMsrs, list.head());
  if (got < 0)
    return std::unexpected(ioctl_failed("KVM_GET_MSRS"));
  const auto entries = list.entries().first(std::min(static_cast<size_t>(got), indices.size()));
  to.insert(to.end(), entries.begin(), entries.end());
  return entries.size();
}

std::expected<void, Error> set_msrs(int fd, std::span<const kvm_msr_entry> msrs) {
  while (!msrs.empty()) {
    KvmMsrs list(msrs.size());
    list.head()->count = static_cast<uint32_t>(msrs.size());
    std::ranges::copy(msrs, list.entries().begin());
    const int set = ::ioctl(fd, kKvmSetMsrs, list.head()); // how many, up to the first that was refused
    if (set < 0)
      return std::unexpected(ioctl_failed("KVM_SET_MSRS"));
    const auto done = static_cast<size_t>(set);
    if (done >= msrs.size())
      break;
    std::vector<kvm_msr_entry> now;
    const uint32_t index = msrs[done].index;
    const auto got = get_msrs(fd, {&index, 1}, now);
    if (!got)
      return std::unexpected(got.error());
    if (now.empty() || now[0].data != msrs[done].data)
      return std::unexpected(refused_msr(msrs[done]));
    msrs = msrs.subspan(done + 1);
  }
  return {};
}

} // namespace stopvisor::vmm
