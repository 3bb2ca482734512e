// SPDX-License-Identifier: Apache-2.0
#include "vmm/state/vcpu_access.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "vmm/kvm_list.h"
#include "vmm/state/vcpu_msrs.h"

namespace stopvisor::vmm {
namespace {

constexpr size_t kXsaveBytes = sizeof(KvmXsave);
// linux/kvm.h has it since 5.14.
constexpr unsigned long kCapSregs2 = 200;
constexpr uint64_t kPdptrsValid = 1;

Error ioctl_failed(const char* name) {
  return system_error("vCPU state", name, errno);
}

std::expected<void, Error> call(int fd, unsigned long request, void* argument, const char* name) {
  if (::ioctl(fd, request, argument) < 0)
    return std::unexpected(ioctl_failed(name));
  return {};
}

std::expected<void, Error> get_cpuid(int fd, VcpuValues& values) {
  constexpr uint32_t kMostLeaves = 256; // KVM_MAX_CPUID_ENTRIES
  KvmCpuidList list(kMostLeaves);
  list.head()->count = kMostLeaves;
  if (auto done = call(fd, kKvmGetCpuid2, list.head(), "KVM_GET_CPUID2"); !done)
    return done;
  const auto leaves = list.entries().first(std::min(list.head()->count, kMostLeaves));
  values.cpuid.assign(leaves.begin(), leaves.end());
  return {};
}

std::expected<void, Error> set_cpuid(int fd, const VcpuValues& values) {
  KvmCpuidList list(values.cpuid.size());
  list.head()->count = static_cast<uint32_t>(values.cpuid.size());
  std::ranges::copy(values.cpuid, list.entries().begin());
  return call(fd, kKvmSetCpuid2, list.head(), "KVM_SET_CPUID2");
}

// Intel SDM volume 3, 4.1.1: PAE paging is CR0.PG and CR4.PAE without EFER.LMA.
bool pages_by_pae(const kvm_sregs& sregs) {
  return (sregs.cr0 & 0x8000'0000) != 0 && (sregs.cr4 & 0x20) != 0 && (sregs.efer & 0x400) == 0;
}

std::expected<void, Error> get_pdptrs(int fd, const KvmSystem& system, VcpuValues& values) {
  if (!pages_by_pae(values.sregs) || system.capability(kCapSregs2) == 0) // a call costs as much as all registers
    return {};
  kvm_sregs2 sregs{};
  if (auto done = call(fd, KVM_GET_SREGS2, &sregs, "KVM_GET_SREGS2"); !done)
    return done;
  values.has_pdptrs = (sregs.flags & kPdptrsValid) != 0;
  if (values.has_pdptrs)
    std::ranges::copy(sregs.pdptrs, values.pdptrs.begin());
  return {};
}

// Those that are not in memory any more are given by name; else KVM reads them where CR3 points.
std::expected<void, Error> set_sregs(int fd, const KvmSystem& system, const VcpuValues& values) {
  kvm_sregs sregs = values.sregs;
  if (!values.has_pdptrs || system.capability(kCapSregs2) == 0)
    return call(fd, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
  kvm_sregs2 more{};
  more.cs = sregs.cs;
  more.ds = sregs.ds;
  more.es = sregs.es;
  more.fs = sregs.fs;
  more.gs = sregs.gs;
  more.ss = sregs.ss;
  more.tr = sregs.tr;
  more.ldt = sregs.ldt;
  more.gdt = sregs.gdt;
  more.idt = sregs.idt;
  more.cr0 = sregs.cr0;
  more.cr2 = sregs.cr2;
  more.cr3 = sregs.cr3;
  more.cr4 = sregs.cr4;
  more.cr8 = sregs.cr8;
  more.efer = sregs.efer;
  more.apic_base = sregs.apic_base;
  more.flags = kPdptrsValid;
  std::ranges::copy(values.pdptrs, more.pdptrs);
  return call(fd, KVM_SET_SREGS2, &more, "KVM_SET_SREGS2");
}

size_t xsave_bytes(const KvmSystem& system) {
  return std::max(static_cast<size_t>(system.capability(KVM_CAP_XSAVE2)), kXsaveBytes);
}

std::expected<void, Error> get_xsave(int fd, const KvmSystem& system, VcpuValues& values) {
  values.xsave.resize(xsave_bytes(system)); // KVM_SET_XSAVE reads as much, too
  return call(fd, values.xsave.size() > kXsaveBytes ? kKvmGetXsave2 : kKvmGetXsave, values.xsave.data(),
              "KVM_GET_XSAVE");
}

std::expected<void, Error> set_xsave(int fd, const KvmSystem& system, const VcpuValues& values) {
  std::vector<std::byte> area = values.xsave;
  const size_t room = xsave_bytes(system);
  const auto beyond = std::span(area).subspan(std::min(room, area.size()));
  if (std::ranges::any_of(beyond, [](std::byte byte) { return byte != std::byte{0}; }))
    return std::unexpected(Error{"restore", "XSAVE area", "it is larger than this host's", Status::kFailed});
  area.resize(room);
  return call(fd, kKvmSetXsave, area.data(), "KVM_SET_XSAVE");
}

std::expected<void, Error> set_events(int fd, const VcpuValues& values) {
  kvm_vcpu_events events = values.events;
  // Not the SIPI's vector: KVM never gives one (KVM API, 4.31), and a zero would be taken for one.
  events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
  return call(fd, KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS");
}

} // namespace

std::expected<VcpuValues, Error> read_vcpu(const KvmVcpu& vcpu, const KvmSystem& system,
                                           std::span<const uint32_t> msrs) {
  const int fd = vcpu.fd();
  VcpuValues values;
  std::expected<void, Error> result;
  const auto then = [&](auto&& step) {
    if (result)
      result = step();
  };
  const auto get = [&](unsigned long request, void* to, const char* name) {
    then([&] { return call(fd, request, to, name); });
  };
  // First these two, which change what others tell: KVM takes INIT and SIPI that are on their way as it is asked
  // for the one, and puts a pending exception's CR2 or DR6 in place as it is asked for the other.
  vcpu.forget_noted();
  get(KVM_GET_MP_STATE, &values.mp_state, "KVM_GET_MP_STATE");
  get(KVM_GET_VCPU_EVENTS, &values.events, "KVM_GET_VCPU_EVENTS");
  // Said to be injected as well, which is what KVM takes (KVM API, 4.32: where payloads are not enabled).
  values.events.exception.pending = 0;
  get(KVM_GET_REGS, &values.regs, "KVM_GET_REGS");
  get(KVM_GET_SREGS, &values.sregs, "KVM_GET_SREGS");
  then([&] { return get_pdptrs(fd, system, values); });
  then([&] { return get_xsave(fd, system, values); });
  get(KVM_GET_XCRS, &values.xcrs, "KVM_GET_XCRS");
  get(KVM_GET_DEBUGREGS, &values.debugregs, "KVM_GET_DEBUGREGS");
  get(KVM_GET_LAPIC, &values.lapic, "KVM_GET_LAPIC");
  derive_processor_priority(values.lapic);
  then([&]() -> std::expected<void, Error> {
    const auto got = get_msrs(fd, msrs, values.msrs);
    if (!got)
      return std::unexpected(got.error());
    if (*got != msrs.size())
      return std::unexpected(Error{"vCPU state", "MSR " + std::to_string(msrs[*got]),
                                   "KVM does not give it any more", Status::kFailed});
    return {};
  });
  then([&] { return get_cpuid(fd, values); });
  values.tsc_khz = static_cast<uint32_t>(std::max(0, ::ioctl(fd, KVM_GET_TSC_KHZ, 0)));
  if (!result)
    return std::unexpected(result.error());
  return values;
}

std::expected<void, Error> write_vcpu(const KvmVcpu& vcpu, const KvmSystem& system, const VcpuValues& values) {
  const int fd = vcpu.fd();
  std::expected<void, Error> result;
  const auto then = [&](auto&& step) {
    if (result)
      result = step();
  };
  const auto set = [&](unsigned long request, auto copy, const char* name) {
    then([&] { return call(fd, request, &copy, name); });
  };
  vcpu.forget_noted();
  kvm_mp_state now{}; // takes INIT and SIPI that are on their way, see VcpuState::restore()
  then([&] { return call(fd, KVM_GET_MP_STATE, &now, "KVM_GET_MP_STATE"); });
  then([&] { return set_cpuid(fd, values); });
  then([&] { return set_sregs(fd, system, values); });
  set(KVM_SET_REGS, values.regs, "KVM_SET_REGS");
  set(KVM_SET_XCRS, values.xcrs, "KVM_SET_XCRS");
  then([&] { return set_xsave(fd, system, values); });
  set(KVM_SET_DEBUGREGS, values.debugregs, "KVM_SET_DEBUGREGS");
  set(KVM_SET_LAPIC, values.lapic, "KVM_SET_LAPIC");
  then([&] { return set_msrs(fd, values.msrs); });
  then([&] { return set_events(fd, values); });
  set(KVM_SET_MP_STATE, values.mp_state, "KVM_SET_MP_STATE");
  return result;
}

} // namespace stopvisor::vmm
