// SPDX-License-Identifier: Apache-2.0
// One KVM virtual machine: its memory slots, interrupt controllers and timer.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm_system.h"
#include "vmm/state/vm_values.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {

class KvmVm {
public:
  // Makes the VM with an in-kernel local APIC, I/O APIC and PICs, and gives it `memory`, which must outlive it.
  // CONTEXT: any thread. RETURNS: kFailed, naming the ioctl that failed.
  [[nodiscard]] static std::expected<KvmVm, Error> create(const KvmSystem& system, uint32_t cpus,
                                                          const GuestMemory& memory);
  KvmVm(); // none yet
  ~KvmVm();
  KvmVm(KvmVm&&) noexcept;
  KvmVm& operator=(KvmVm&&) noexcept;

  // Whether its VMs get a PIT: where KVM has one.
  [[nodiscard]] static bool has_pit(const KvmSystem& system) noexcept;
  [[nodiscard]] bool has_pit() const noexcept { return has_pit_; }
  // KVM takes milliseconds to make it (a kernel thread, and waits for readers of its tables), and holds the VM's
  // lock meanwhile: create_vcpu(), add_irqfd() and add_ioeventfd() wait for it. Others go on, so a thread makes it.
  // CONTEXT: once, after those. RETURNS: kFailed where the host has no thread.
  [[nodiscard]] std::expected<void, Error> begin_pit();
  // Until it is there. CONTEXT: before anything looks at it or a vCPU runs; one thread at a time; again at will.
  // RETURNS: kFailed, naming the ioctl.
  [[nodiscard]] std::expected<void, Error> await_pit();

  // KVM_CREATE_VCPU; `cpu` becomes its APIC id. RETURNS: kFailed.
  [[nodiscard]] std::expected<UniqueFd, Error> create_vcpu(uint32_t cpu) const;

  // Sets one interrupt line (KVM_IRQ_LINE). CONTEXT: any thread, does not block; a leaf.
  void set_irq_line(uint32_t gsi, bool level) const noexcept;

  // Each time the eventfd is raised, `gsi` gets an edge (KVM_IRQFD). For the VM's life; a reset() keeps it.
  // CONTEXT: before a vCPU runs. RETURNS: kFailed.
  [[nodiscard]] std::expected<void, Error> add_irqfd(uint32_t gsi, int event) const;
  // Each write of `bytes` bytes to `address` raises the eventfd in place of a KVM_RUN exit (KVM_IOEVENTFD).
  // Context, life and errors: the same.
  [[nodiscard]] std::expected<void, Error> add_ioeventfd(Gpa address, uint32_t bytes, int event) const;

  // The dirty log (KVM API, 4.8 and 4.117). Slots are numbered in the order of GuestMemory::slots(). CONTEXT: any
  // thread, while vCPUs run. RETURNS: kFailed, naming the ioctl.
  // How it goes about it: KVM_DIRTY_LOG_*, before a slot is logged.
  [[nodiscard]] std::expected<void, Error> set_dirty_log_flags(const std::string& operation, uint64_t flags) const;
  [[nodiscard]] std::expected<void, Error> log_writes(const std::string& operation, uint32_t number,
                                                      const MemorySlot& slot, bool on) const;
  // A bit for each page, 64 a word, up to the slot's end.
  [[nodiscard]] std::expected<void, Error> dirty_bitmap(const std::string& operation, uint32_t number,
                                                        std::span<uint64_t> bits) const;
  // Forgets those of `bits`, of `pages` pages from `first` on: multiples of 64, or up to the slot's end.
  [[nodiscard]] std::expected<void, Error> clear_dirty(const std::string& operation, uint32_t number,
                                                       uint64_t first, uint64_t pages,
                                                       std::span<const uint64_t> bits) const;

  // Puts interrupt controllers and timer back to their state after create(). CONTEXT: under a stop.
  // RETURNS: kFailed, naming the ioctl.
  [[nodiscard]] std::expected<void, Error> reset() const;

  // CONTEXT, the next: under a stop, or before a vCPU runs. RETURNS: kFailed, naming the ioctl.
  [[nodiscard]] std::expected<ControllerValues, Error> controllers() const;
  // All but the timer, see set_pit().
  [[nodiscard]] std::expected<void, Error> set_irqchips(const ControllerValues& values) const;
  // Starts the timer as well, where it runs.
  [[nodiscard]] std::expected<void, Error> set_pit(const ControllerValues& values) const;
  [[nodiscard]] std::expected<ClockValues, Error> clock() const;
  // kvmclock goes on from there.
  [[nodiscard]] std::expected<void, Error> set_clock(const ClockValues& values) const;

private:
  struct PitMaker;
  explicit KvmVm(UniqueFd fd) noexcept;
  [[nodiscard]] std::expected<void, Error> create_controllers(const KvmSystem& system, uint32_t cpus);
  [[nodiscard]] std::expected<void, Error> add_memory(const GuestMemory& memory) const;
  [[nodiscard]] std::expected<std::optional<kvm_pit_state2>, Error> pit() const;

  UniqueFd fd_;
  bool has_pit_ = false;
  ControllerValues initial_; // what reset() goes back to
  std::unique_ptr<PitMaker> pit_maker_;
};

} // namespace stopvisor::vmm
