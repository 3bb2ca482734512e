// SPDX-License-Identifier: Apache-2.0
// One KVM vCPU: its descriptor, run page and registers.
//
// KVM serialises a vCPU's ioctls, and KVM_RUN holds that lock: all but enter() and the run page may be used by
// another thread while the vCPU's own thread is held by a stop.
//
// Asking KVM for registers costs a call each for two sets of them, and each call loads the vCPU on the host's
// processor. But an exit can leave them in the run page (KVM API, 5, "kvm_valid_regs"), where they cost nearly
// nothing. They are noted then, until the next entry, or until somebody changes them.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "vmm/boot/image.h"
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
  // The two halves of it: KVM numbers vCPUs in the order of the first; the second can be done to several at once.
  [[nodiscard]] static std::expected<KvmVcpu, Error> open(const KvmSystem& system, const KvmVm& vm, uint32_t cpu);
  [[nodiscard]] std::expected<void, Error> set_up(const KvmSystem& system, uint32_t cpu, uint32_t cpus) const;
  ~KvmVcpu();
  KvmVcpu(KvmVcpu&& other) noexcept;
  KvmVcpu& operator=(KvmVcpu&&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] kvm_run& run() const noexcept { return *run_; }

  // The byte that makes KVM_RUN return at once. CONTEXT: the vCPU's own thread and its signal handler only; under a
  // stop anybody may clear it.
  void set_immediate_exit(bool on) const noexcept;
  // KVM_RUN. `note_registers`: they are noted as it returns, where KVM can do that.
  // RETURNS: 0 where run() tells an exit, else the errno. CONTEXT: the vCPU's own thread, or under a stop.
  [[nodiscard]] int enter(bool note_registers = false) const noexcept;
  // Notes the registers by asking KVM, unless they are noted. A failure is for who reads them to find. CONTEXT: the
  // vCPU's own thread, or under a stop.
  void note_registers() const noexcept;
  // Whoever changes registers by KVM's calls says so. CONTEXT: as registers().
  void forget_noted() const noexcept;
  // CONTEXT: as registers().
  [[nodiscard]] bool noted() const noexcept;
  // The data of a KVM_EXIT_IO: `size * count` bytes in the run page; empty where KVM's numbers leave the page.
  [[nodiscard]] std::span<std::byte> io_data() const noexcept;

  // KVM_KVMCLOCK_CTRL: the guest is told that it was paused, and does not take the hold for a lock-up (KVM API,
  // 4.70). A guest without kvmclock is not told, which is no error.
  void note_guest_paused() const noexcept;

  // Those that are noted, else KVM is asked. `with_activity`: also whether it is halted or waits to be started,
  // which KVM is asked in any case. RETURNS: kFailed, naming the ioctl. CONTEXT: the vCPU's own thread, or under a
  // stop.
  [[nodiscard]] std::expected<Registers, Error> registers(bool with_activity = true) const;
  // Puts it where its boot protocol starts vCPU 0. The same.
  [[nodiscard]] std::expected<void, Error> set_entry(const PvhEntry& entry) const;
  [[nodiscard]] std::expected<void, Error> set_entry(const Linux64Entry& entry) const;

private:
  explicit KvmVcpu(UniqueFd fd) noexcept : fd_(std::move(fd)) {}
  [[nodiscard]] std::expected<void, Error> set_entry(const struct EntryState& state) const;

  UniqueFd fd_;
  kvm_run* run_ = nullptr;
  size_t run_bytes_ = 0;
  bool exits_note_ = false; // KVM can leave registers in the run page
};

} // namespace stopvisor::vmm
