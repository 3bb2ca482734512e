// SPDX-License-Identifier: Apache-2.0
#include "vmm/kvm_system.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "stopper/cpu_mask.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm_list.h"

namespace stopvisor::vmm {
namespace {

constexpr std::string_view kOperation = "start VM";

Error failed(const std::string& path, std::string reason) {
  return Error{std::string(kOperation), path, std::move(reason), Status::kFailed};
}

Error cannot_open(const std::string& path, int error_number) {
  switch (error_number) {
  case ENOENT:
  case ENXIO:
  case ENODEV:
    return failed(path, "this host has no KVM: is virtualisation enabled, and the kvm module loaded?");
  case EACCES:
  case EPERM:
    return failed(path, "no right to open it: is this user in the group kvm?");
  default:
    return system_error(kOperation, path, error_number);
  }
}

struct Needed {
  unsigned long capability;
  const char* name;
};
constexpr std::array kNeeded{
    Needed{KVM_CAP_IRQCHIP, "an in-kernel interrupt controller"},
    Needed{KVM_CAP_USER_MEMORY, "user memory slots"},
    Needed{KVM_CAP_EXT_CPUID, "KVM_GET_SUPPORTED_CPUID"},
    Needed{KVM_CAP_MP_STATE, "KVM_GET_MP_STATE"},
    Needed{KVM_CAP_IMMEDIATE_EXIT, "immediate_exit"},
    Needed{KVM_CAP_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS"},
    Needed{KVM_CAP_DEBUGREGS, "KVM_GET_DEBUGREGS"},
    Needed{KVM_CAP_XSAVE, "KVM_GET_XSAVE"},
    Needed{KVM_CAP_XCRS, "KVM_GET_XCRS"},
};

} // namespace

std::expected<KvmSystem, Error> KvmSystem::open(const std::string& path) {
  auto system = open_unread(path);
  if (system)
    if (auto read = system->read_lists(); !read)
      return std::unexpected(read.error());
  return system;
}

std::expected<KvmSystem, Error> KvmSystem::open_unread(const std::string& path) {
  KvmSystem system;
  system.fd_.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!system.fd_)
    return std::unexpected(cannot_open(path, errno));
  if (auto checked = system.check(path); !checked)
    return std::unexpected(checked.error());
  return system;
}

int KvmSystem::capability(unsigned long which) const noexcept {
  return std::max(0, ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, which));
}

uint64_t KvmSystem::max_memory_bytes() const noexcept {
  constexpr uint64_t kMostSlotPages =
      (uint64_t{1} << 31) - 1;     // Linux, include/linux/kvm_host.h: KVM_MEM_MAX_NR_PAGES
  constexpr unsigned kWidest = 52; // AMD APM volume 2, 5.1
  const uint64_t top = uint64_t{1} << std::min(address_bits(), kWidest);
  return std::min(kHoleStart + kMostSlotPages * kPageBytes, top - (kHoleEnd - kHoleStart));
}

unsigned KvmSystem::address_bits() const noexcept {
  constexpr unsigned kLeast = 36; // Intel SDM volume 2, CPUID: where the leaf is missing
  const auto leaf = std::ranges::find(cpuid_, 0x8000'0008U, &kvm_cpuid_entry2::function);
  return leaf == cpuid_.end() ? kLeast : leaf->eax & 0xff;
}

std::expected<void, Error> KvmSystem::check(const std::string& path) {
  const int version = ::ioctl(fd_.get(), KVM_GET_API_VERSION, 0);
  if (version < 0)
    return std::unexpected(failed(path, "is not KVM"));
  if (version != KVM_API_VERSION) // 12 since Linux 2.6.22 (KVM API, 4.1)
    return std::unexpected(failed(path, "speaks KVM API version " + std::to_string(version) +
                                            ", this VMM version " + std::to_string(KVM_API_VERSION)));
  for (const Needed& needed : kNeeded)
    if (capability(needed.capability) == 0)
      return std::unexpected(failed(path, std::string("this KVM lacks ") + needed.name));
  const int mapped = ::ioctl(fd_.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (mapped < static_cast<int>(sizeof(kvm_run)))
    return std::unexpected(failed(path, "has no usable run page"));
  run_page_bytes_ = static_cast<size_t>(mapped);
  // KVM API, 4.4 and 4.7: where MAX_VCPUS is unknown NR_VCPUS holds, and where that is unknown, 4.
  int most = capability(KVM_CAP_MAX_VCPUS);
  if (most == 0)
    most = capability(KVM_CAP_NR_VCPUS);
  if (most == 0)
    most = 4;
  if (const int ids = capability(KVM_CAP_MAX_VCPU_ID); ids != 0)
    most = std::min(most, ids);
  constexpr uint32_t kWorkers = 1; // participants of a stop that are no vCPUs: the doorbell's worker
  max_cpus_ = std::min(static_cast<uint32_t>(most), stopper::kMaxCpus - kWorkers);
  return {};
}

std::expected<void, Error> KvmSystem::read_lists() {
  if (!msrs_.empty())
    return {};
  constexpr uint32_t kMostLeaves = 256; // KVM_MAX_CPUID_ENTRIES
  KvmCpuidList leaves(kMostLeaves);
  leaves.head()->count = kMostLeaves;
  if (::ioctl(fd_.get(), kKvmGetSupportedCpuid, leaves.head()) != 0)
    return std::unexpected(system_error(kOperation, "KVM_GET_SUPPORTED_CPUID", errno));
  const auto known = leaves.entries().first(std::min(leaves.head()->count, kMostLeaves));
  cpuid_.assign(known.begin(), known.end());

  constexpr uint32_t kMostMsrs = 4096; // far more than there are; E2BIG where not
  KvmMsrIndices msrs(kMostMsrs);
  msrs.head()->count = kMostMsrs;
  if (::ioctl(fd_.get(), kKvmGetMsrIndexList, msrs.head()) != 0)
    return std::unexpected(system_error(kOperation, "KVM_GET_MSR_INDEX_LIST", errno));
  const auto indices = msrs.entries().first(std::min(msrs.head()->count, kMostMsrs));
  msrs_.assign(indices.begin(), indices.end());
  return {};
}

std::expected<UniqueFd, Error> KvmSystem::create_vm() const {
  for (;;) {
    const int fd = ::ioctl(fd_.get(), KVM_CREATE_VM, 0UL);
    if (fd >= 0)
      return UniqueFd(fd);
    if (errno != EINTR)
      return std::unexpected(system_error(kOperation, "KVM_CREATE_VM", errno));
  }
}

} // namespace stopvisor::vmm
