// SPDX-License-Identifier: Apache-2.0
#include "vmm/kvm_vcpu.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>

#include "vmm/cpuid.h"
#include "vmm/firmware_msrs.h"
#include "vmm/kvm_list.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kNotedSets = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;

Error ioctl_failed(const char* name) {
  return system_error("vCPU", name, errno);
}

Segment from_kvm(const kvm_segment& segment) {
  Segment result;
  result.base = segment.base;
  result.limit = segment.limit;
  result.selector = segment.selector;
  result.type = segment.type;
  result.dpl = segment.dpl;
  result.present = segment.present != 0;
  result.long_mode = segment.l != 0;
  result.default_32 = segment.db != 0;
  return result;
}

void take_system_registers(Registers& to, const kvm_sregs& from) {
  to.cs = from_kvm(from.cs);
  to.ds = from_kvm(from.ds);
  to.es = from_kvm(from.es);
  to.fs = from_kvm(from.fs);
  to.gs = from_kvm(from.gs);
  to.ss = from_kvm(from.ss);
  to.tr = from_kvm(from.tr);
  to.ldt = from_kvm(from.ldt);
  to.gdt_base = from.gdt.base;
  to.gdt_limit = from.gdt.limit;
  to.idt_base = from.idt.base;
  to.idt_limit = from.idt.limit;
  to.cr0 = from.cr0;
  to.cr2 = from.cr2;
  to.cr3 = from.cr3;
  to.cr4 = from.cr4;
  to.cr8 = from.cr8;
  to.efer = from.efer;
  to.apic_base = from.apic_base;
}

// Selectors are never loaded from a table here: any will do that is not null.
kvm_segment flat_segment(uint16_t selector, uint8_t type) {
  kvm_segment segment{};
  segment.limit = 0xffff'ffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.db = 1;
  segment.s = 1;
  segment.g = 1;
  return segment;
}

// Intel SDM volume 3, 3.4.5.1 and 3.5: types of segments.
constexpr uint8_t kCodeReadAccessed = 0xb;
constexpr uint8_t kDataWriteAccessed = 0x3;
constexpr uint8_t kBusyTss = 0xb;
// 2.5 and 2.2.1: control registers.
constexpr uint64_t kProtected = 0x11; // CR0: PE, and ET, which is always set
constexpr uint64_t kPaging = 0x8000'0000;
constexpr uint64_t kPhysicalAddressExtension = 0x20; // CR4
constexpr uint64_t kLongModeEnabled = 0x100;         // EFER
constexpr uint64_t kLongModeActive = 0x400;

} // namespace

std::expected<KvmVcpu, Error> KvmVcpu::create(const KvmSystem& system, const KvmVm& vm, uint32_t cpu,
                                              uint32_t cpus) {
  auto vcpu = open(system, vm, cpu);
  if (vcpu)
    if (auto done = vcpu->set_up(system, cpu, cpus); !done)
      return std::unexpected(done.error());
  return vcpu;
}

std::expected<KvmVcpu, Error> KvmVcpu::open(const KvmSystem& system, const KvmVm& vm, uint32_t cpu) {
  auto fd = vm.create_vcpu(cpu);
  if (!fd)
    return std::unexpected(fd.error());
  KvmVcpu vcpu(std::move(*fd));
  void* const page =
      ::mmap(nullptr, system.run_page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd_.get(), 0);
  if (page == MAP_FAILED)
    return std::unexpected(ioctl_failed("mmap of the run page"));
  vcpu.run_ = static_cast<kvm_run*>(page);
  vcpu.run_bytes_ = system.run_page_bytes();
  const auto sets = static_cast<uint64_t>(system.capability(KVM_CAP_SYNC_REGS));
  vcpu.exits_note_ = (sets & kNotedSets) == kNotedSets;
  return vcpu;
}

std::expected<void, Error> KvmVcpu::set_up(const KvmSystem& system, uint32_t cpu, uint32_t cpus) const {
  const auto leaves = guest_cpuid(system, cpu, cpus);
  KvmCpuidList list(leaves.size());
  list.head()->count = static_cast<uint32_t>(leaves.size());
  std::copy(leaves.begin(), leaves.end(), list.entries().begin());
  if (::ioctl(fd_.get(), kKvmSetCpuid2, list.head()) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_CPUID2"));

  set_firmware_msrs(fd_.get(), system.address_bits());
  // KVM has made vCPU 0 runnable and the others wait for INIT/SIPI; said here so that it holds on every KVM.
  kvm_mp_state state{};
  state.mp_state = cpu == 0 ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED;
  if (::ioctl(fd_.get(), KVM_SET_MP_STATE, &state) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_MP_STATE"));
  return {};
}

KvmVcpu::~KvmVcpu() {
  if (run_ != nullptr)
    ::munmap(run_, run_bytes_);
}

KvmVcpu::KvmVcpu(KvmVcpu&& other) noexcept
    : fd_(std::move(other.fd_)), run_(std::exchange(other.run_, nullptr)),
      run_bytes_(std::exchange(other.run_bytes_, 0)), exits_note_(other.exits_note_) {}

void KvmVcpu::set_immediate_exit(bool on) const noexcept {
  // relaxed: thread, handler and the kernel's KVM_RUN on behalf of this thread see it in program order.
  std::atomic_ref(run_->immediate_exit).store(on ? 1 : 0, std::memory_order_relaxed);
}

int KvmVcpu::enter(bool note_registers) const noexcept {
  forget_noted();
  run_->kvm_valid_regs = note_registers && exits_note_ ? kNotedSets : 0;
  return ::ioctl(fd_.get(), KVM_RUN, 0) == 0 ? 0 : errno;
}

// No x86 processor has a zero in either: a bit of each is always set (Intel SDM volume 3, 2.5; volume 1, 3.4.3).
// KVM may leave the page alone whatever it was asked for.
void KvmVcpu::forget_noted() const noexcept {
  run_->s.regs.regs.rflags = 0;
  run_->s.regs.sregs.cr0 = 0;
}

bool KvmVcpu::noted() const noexcept {
  return run_->s.regs.regs.rflags != 0 && run_->s.regs.sregs.cr0 != 0;
}

void KvmVcpu::note_registers() const noexcept {
  if (noted())
    return;
  if (::ioctl(fd_.get(), KVM_GET_REGS, &run_->s.regs.regs) != 0 ||
      ::ioctl(fd_.get(), KVM_GET_SREGS, &run_->s.regs.sregs) != 0)
    forget_noted();
}

std::span<std::byte> KvmVcpu::io_data() const noexcept {
  const uint64_t bytes = uint64_t{run_->io.size} * run_->io.count;
  if (run_->io.data_offset > run_bytes_ || bytes > run_bytes_ - run_->io.data_offset)
    return {};
  return {reinterpret_cast<std::byte*>(run_) + run_->io.data_offset, bytes};
}

void KvmVcpu::note_guest_paused() const noexcept {
  (void)::ioctl(fd_.get(), KVM_KVMCLOCK_CTRL, 0);
}

std::expected<Registers, Error> KvmVcpu::registers(bool with_activity) const {
  kvm_mp_state state{};
  if (with_activity) {
    forget_noted(); // KVM takes INIT and SIPI that are on their way as it is asked (kvm_apic_accept_events())
    if (::ioctl(fd_.get(), KVM_GET_MP_STATE, &state) != 0)
      return std::unexpected(ioctl_failed("KVM_GET_MP_STATE"));
  }
  kvm_regs general{};
  kvm_sregs system{};
  if (noted()) {
    general = run_->s.regs.regs;
    system = run_->s.regs.sregs;
  } else {
    if (::ioctl(fd_.get(), KVM_GET_REGS, &general) != 0)
      return std::unexpected(ioctl_failed("KVM_GET_REGS"));
    if (::ioctl(fd_.get(), KVM_GET_SREGS, &system) != 0)
      return std::unexpected(ioctl_failed("KVM_GET_SREGS"));
  }
  Registers result;
  result.general = {general.rax, general.rbx, general.rcx, general.rdx, general.rsi, general.rdi,
                    general.rsp, general.rbp, general.r8,  general.r9,  general.r10, general.r11,
                    general.r12, general.r13, general.r14, general.r15};
  result.rip = general.rip;
  result.rflags = general.rflags;
  take_system_registers(result, system);
  if (!with_activity)
    return result;
  result.halted = state.mp_state == KVM_MP_STATE_HALTED;
  result.waiting = state.mp_state == KVM_MP_STATE_UNINITIALIZED || state.mp_state == KVM_MP_STATE_INIT_RECEIVED;
  return result;
}

// Everything of an entry that its protocol has a say in.
struct EntryState {
  kvm_segment code{}, data{};
  kvm_dtable gdt{};
  uint64_t cr0 = 0, cr3 = 0, cr4 = 0, efer = 0;
  kvm_regs general{};
};

std::expected<void, Error> KvmVcpu::set_entry(const PvhEntry& entry) const {
  EntryState state;
  state.code = flat_segment(0x8, kCodeReadAccessed);
  state.data = flat_segment(0x10, kDataWriteAccessed);
  state.cr0 = kProtected;
  state.general.rip = entry.rip;
  state.general.rbx = entry.rbx;
  return set_entry(state);
}

std::expected<void, Error> KvmVcpu::set_entry(const Linux64Entry& entry) const {
  EntryState state;
  state.code = flat_segment(kLinuxCodeSelector, kCodeReadAccessed);
  state.code.db = 0;
  state.code.l = 1;
  state.data = flat_segment(kLinuxDataSelector, kDataWriteAccessed);
  state.gdt.base = entry.gdt_base;
  state.gdt.limit = entry.gdt_limit;
  state.cr0 = kProtected | kPaging;
  state.cr3 = entry.cr3;
  state.cr4 = kPhysicalAddressExtension;
  state.efer = kLongModeEnabled | kLongModeActive;
  state.general.rip = entry.rip;
  state.general.rsi = entry.rsi;
  return set_entry(state);
}

std::expected<void, Error> KvmVcpu::set_entry(const EntryState& state) const {
  kvm_sregs system{};
  if (::ioctl(fd_.get(), KVM_GET_SREGS, &system) != 0)
    return std::unexpected(ioctl_failed("KVM_GET_SREGS"));
  system.cs = state.code;
  system.ds = system.es = system.fs = system.gs = system.ss = state.data;
  system.tr = {};
  system.tr.limit = 0x67;
  system.tr.selector = 0x20;
  system.tr.type = kBusyTss; // what it is in protected mode, and must be in 64-bit mode
  system.tr.present = 1;
  system.gdt = state.gdt;
  system.idt = {};
  system.cr0 = state.cr0;
  system.cr3 = state.cr3;
  system.cr4 = state.cr4;
  system.efer = state.efer;
  forget_noted();
  if (::ioctl(fd_.get(), KVM_SET_SREGS, &system) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_SREGS"));
  kvm_regs general = state.general;
  general.rflags = 2; // bit 1 is always set
  if (::ioctl(fd_.get(), KVM_SET_REGS, &general) != 0)
    return std::unexpected(ioctl_failed("KVM_SET_REGS"));
  return {};
}

} // namespace stopvisor::vmm
