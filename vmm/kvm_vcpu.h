// SPDX-License-Identifier: Apache-2.0
// One KVM vCPU: its descriptor, run page and registers.
//
// KVM serialises a vCPU's ioctls, and KVM_RUN holds that lock: all but enter() and the run page may be used by
// another thread while the vCPU's own thread is held by a stop.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "vmm/error.h"
#include "vmm/kvm_system.h"
#include "vmm/kvm_vm.h"
#include "vmm/registers.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

class KvmVcpu {
public:
  // Makes vCPU `cpu` of `cpus` possible ones and gives it its CPUID. It is as after power-on: vCPU 0 at the reset
  // vector, the others waiting for INIT/SIPI. RETURNS: kFailed, naming the ioctl.
  [[nodiscard]] static std::expected<KvmVcpu, Error> create(const KvmSystem& system, const KvmVm& vm, uint32_t cpu,
                                                            uint32_t cpus);
  ~KvmVcpu();
  KvmVcpu(KvmVcpu&& other) noexcept;
  KvmVcpu& operator=(KvmVcpu&&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] kvm_run& run() const noexcept { return *run_; }

  // The byte that makes KVM_RUN return at once. CONTEXT: the vCPU's own thread and its signal handler only.
  void set_immediate_exit(bool on) const noexcept;
  // KVM_RUN. RETURNS: 0 where run() tells an exit, else the errno. CONTEXT: the vCPU's own thread.
  [[nodiscard]] int enter() const noexcept;
  // The data of a KVM_EXIT_IO: `size * count` bytes in the run page; empty where KVM's numbers leave the page.
  [[nodiscard]] std::span<std::byte> io_data() const noexcept;

  // KVM_KVMCLOCK_CTRL: the guest is told that it was paused, and does not take the hold for a lock-up (KVM API,
  // 4.70). A guest without kvmclock is not told, which is no error.
  void note_guest_paused() const noexcept;

  // RETURNS: kFailed, naming the ioctl. CONTEXT: the vCPU's own thread, or under a stop.
  [[nodiscard]] std::expected<Registers, Error> registers() const;
  // 32-bit flat protected mode without paging, as PVH starts vCPU 0 (xen/docs/misc/pvh.pandoc). The same.
  [[nodiscard]] std::expected<void, Error> set_pvh_entry(uint64_t rip, uint64_t rbx) const;

private:
  explicit KvmVcpu(UniqueFd fd) noexcept : fd_(std::move(fd)) {}

  UniqueFd fd_;
  kvm_run* run_ = nullptr;
  size_t run_bytes_ = 0;
};

} // namespace stopvisor::vmm
