// SPDX-License-Identifier: Apache-2.0
// The open /dev/kvm: what this host's KVM can do, and where its VMs come from.
//
// Everything that can be wrong with a host is found here, before anything is built, and said in one line.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <expected>
#include <string>
#include <vector>

#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

class KvmSystem {
public:
  // Opens KVM and checks that it can do what this VMM is built on. CONTEXT: any thread.
  // RETURNS: kFailed: no such device, no right to open it, not KVM, another API version, a capability missing.
  [[nodiscard]] static std::expected<KvmSystem, Error> open(const std::string& path = "/dev/kvm");
  // The two halves of it, for who has better things to do first: on a nested host each leaf of CPUID is an exit to
  // the outer one, 0.25 ms in all. CONTEXT of the second: one thread at a time; nothing where they were read.
  [[nodiscard]] static std::expected<KvmSystem, Error> open_unread(const std::string& path = "/dev/kvm");
  [[nodiscard]] std::expected<void, Error> read_lists();

  // KVM_CHECK_EXTENSION: 0 where the capability is unknown. (KVM API, 4.4)
  [[nodiscard]] int capability(unsigned long which) const noexcept;

  // The most vCPUs one VM can have: KVM's limit, the stopper's, or the vCPU ids', whichever is smallest.
  [[nodiscard]] uint32_t max_cpus() const noexcept { return max_cpus_; }
  // The most memory one VM can have: what KVM takes in one slot above the hole below 4 GiB, or what the guest's
  // CPUs can address, whichever is smaller. CONTEXT, this and the following: after read_lists() or open().
  [[nodiscard]] uint64_t max_memory_bytes() const noexcept;
  // Bits of a guest-physical address, as the guest's CPUID says it.
  [[nodiscard]] unsigned address_bits() const noexcept;
  // CPUID leaves this host can give a guest (KVM_GET_SUPPORTED_CPUID).
  [[nodiscard]] const std::vector<kvm_cpuid_entry2>& supported_cpuid() const noexcept { return cpuid_; }
  // MSRs that make up a vCPU's state (KVM_GET_MSR_INDEX_LIST).
  [[nodiscard]] const std::vector<uint32_t>& state_msrs() const noexcept { return msrs_; }

  // CONTEXT, these: at any time.
  // Bytes to map of a vCPU's descriptor for its run page (KVM_GET_VCPU_MMAP_SIZE).
  [[nodiscard]] size_t run_page_bytes() const noexcept { return run_page_bytes_; }
  // KVM_CREATE_VM. RETURNS: kFailed where the host refuses.
  [[nodiscard]] std::expected<UniqueFd, Error> create_vm() const;

private:
  KvmSystem() = default;
  [[nodiscard]] std::expected<void, Error> check(const std::string& path);

  UniqueFd fd_;
  uint32_t max_cpus_ = 0;
  size_t run_page_bytes_ = 0;
  std::vector<kvm_cpuid_entry2> cpuid_;
  std::vector<uint32_t> msrs_;
};

} // namespace stopvisor::vmm
