// SPDX-License-Identifier: Apache-2.0
#include "vmm/state/vcpu_values.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace stopvisor::vmm {
namespace {

constexpr uint32_t kVersion = 1; // of all of them
constexpr uint32_t kMostLeaves = 256;
constexpr uint32_t kMostMsrs = 4096;
constexpr size_t kLeastXsave = 4096;
constexpr size_t kMostXsave = 64 << 10; // AMX needs 11 KiB

// ---- each structure's fields, without its padding -----------------------------------------------------------

void each_field(const auto& io, auto& leaf, const kvm_cpuid_entry2* /*tag*/) {
  io(leaf.function, leaf.index, leaf.flags, leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
}

void each_field(const auto& io, auto& r, const kvm_regs* /*tag*/) {
  io(r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp);
  io(r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags);
}

void each_field(const auto& io, auto& segment, const kvm_segment* /*tag*/) {
  io(segment.base, segment.limit, segment.selector, segment.type, segment.present, segment.dpl, segment.db,
     segment.s, segment.l, segment.g, segment.avl, segment.unusable);
}

void each_field(const auto& io, auto& s, const kvm_sregs* /*tag*/) {
  for (auto* segment : {&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt})
    each_field(io, *segment, static_cast<const kvm_segment*>(nullptr));
  io(s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit);
  io(s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base, s.interrupt_bitmap);
}

void each_field(const auto& io, auto& d, const kvm_debugregs* /*tag*/) {
  io(d.db, d.dr6, d.dr7, d.flags);
}

void each_field(const auto& io, auto& e, const kvm_vcpu_events* /*tag*/) {
  io(e.exception.injected, e.exception.nr, e.exception.has_error_code, e.exception.pending, e.exception.error_code);
  io(e.interrupt.injected, e.interrupt.nr, e.interrupt.soft, e.interrupt.shadow);
  io(e.nmi.injected, e.nmi.pending, e.nmi.masked);
  io(e.smi.smm, e.smi.pending, e.smi.smm_inside_nmi, e.smi.latched_init);
  io(e.triple_fault.pending, e.exception_has_payload, e.exception_payload);
}

// ---- sections -----------------------------------------------------------------------------------------------

struct Encoder {
  uint32_t cpu;
  std::vector<StateSection>& to;

  void add(StateKind kind, const auto& write) const {
    StateWriter writer;
    write(writer);
    to.push_back({static_cast<uint32_t>(kind), kVersion, cpu, writer.take()});
  }
  template <class Struct>
  void add_struct(StateKind kind, const Struct& values) const {
    add(kind, [&](StateWriter& out) { each_field(PutFields(out), values, static_cast<const Struct*>(nullptr)); });
  }
};

template <class Struct>
void get_struct(StateReader& in, Struct& values) {
  each_field(GetFields(in), values, static_cast<const Struct*>(nullptr));
}

// A number of entries, each at least `entry_bytes` long, so that nobody makes us reserve more than there is.
uint32_t get_count(StateReader& in, uint32_t most, size_t entry_bytes) {
  const auto count = in.get<uint32_t>();
  if (count <= most && count * entry_bytes <= in.left())
    return count;
  in.refuse("it has more entries than there can be");
  return 0;
}

void get_cpuid(StateReader& in, VcpuValues& values) {
  values.cpuid.resize(get_count(in, kMostLeaves, 7 * sizeof(uint32_t)));
  for (kvm_cpuid_entry2& leaf : values.cpuid)
    get_struct(in, leaf);
}

void get_sregs(StateReader& in, VcpuValues& values) {
  get_struct(in, values.sregs);
  get_fields(in, values.has_pdptrs, values.pdptrs);
}

void get_xsave(StateReader& in, VcpuValues& values) {
  in.refuse_unless(in.left() >= kLeastXsave && in.left() <= kMostXsave && in.left() % 4 == 0,
                   "it is of a size that no processor has");
  const auto bytes = in.get_bytes(in.left());
  values.xsave.assign(bytes.begin(), bytes.end());
}

void get_xcrs(StateReader& in, VcpuValues& values) {
  kvm_xcrs& xcrs = values.xcrs;
  xcrs.nr_xcrs = get_count(in, KVM_MAX_XCRS, 12);
  for (uint32_t i = 0; i < xcrs.nr_xcrs; ++i)
    get_fields(in, xcrs.xcrs[i].xcr, xcrs.xcrs[i].value);
}

void get_lapic(StateReader& in, VcpuValues& values) {
  if (const auto bytes = in.get_bytes(sizeof values.lapic.regs); !bytes.empty())
    std::memcpy(values.lapic.regs, bytes.data(), bytes.size());
}

void get_msrs(StateReader& in, VcpuValues& values) {
  values.msrs.resize(get_count(in, kMostMsrs, 12));
  for (kvm_msr_entry& msr : values.msrs)
    get_fields(in, msr.index, msr.data);
}

// A local APIC's registers, 16 bytes apart (Intel SDM volume 3, table 11-1).
constexpr size_t kTaskPriority = 0x80, kProcessorPriority = 0xa0, kInService = 0x100;
constexpr size_t kVectors = 256;
constexpr uint32_t kPriorityClass = 0xf0;

} // namespace

void derive_processor_priority(kvm_lapic_state& lapic) noexcept {
  uint32_t serviced = 0; // the highest vector
  for (size_t vector = 0; vector < kVectors; ++vector) {
    const size_t at = kInService + vector / 32 * 16 + vector % 32 / 8; // little-endian words
    if ((static_cast<uint8_t>(lapic.regs[at]) >> (vector % 8) & 1) != 0)
      serviced = static_cast<uint32_t>(vector);
  }
  const uint32_t task = static_cast<uint8_t>(lapic.regs[kTaskPriority]);
  const uint32_t priority =
      (task & kPriorityClass) >= (serviced & kPriorityClass) ? task : serviced & kPriorityClass;
  std::fill_n(lapic.regs + kProcessorPriority, 4, char{0});
  lapic.regs[kProcessorPriority] = static_cast<char>(priority);
}

void encode_vcpu(const VcpuValues& values, uint32_t cpu, std::vector<StateSection>& to) {
  const Encoder encoder{cpu, to};
  using enum StateKind;
  encoder.add(kVcpuCpuid, [&](StateWriter& out) {
    out.put(static_cast<uint32_t>(values.cpuid.size()));
    for (const kvm_cpuid_entry2& leaf : values.cpuid)
      each_field(PutFields(out), leaf, static_cast<const kvm_cpuid_entry2*>(nullptr));
  });
  encoder.add(kVcpuSregs, [&](StateWriter& out) {
    each_field(PutFields(out), values.sregs, static_cast<const kvm_sregs*>(nullptr));
    put_fields(out, values.has_pdptrs, values.pdptrs);
  });
  encoder.add_struct(kVcpuRegs, values.regs);
  encoder.add(kVcpuXsave, [&](StateWriter& out) { out.put_bytes(values.xsave); });
  encoder.add(kVcpuXcrs, [&](StateWriter& out) {
    const uint32_t count = std::min<uint32_t>(values.xcrs.nr_xcrs, KVM_MAX_XCRS);
    out.put(count);
    for (uint32_t i = 0; i < count; ++i)
      put_fields(out, values.xcrs.xcrs[i].xcr, values.xcrs.xcrs[i].value);
  });
  encoder.add_struct(kVcpuDebugRegs, values.debugregs);
  encoder.add(kVcpuLapic, [&](StateWriter& out) { out.put_bytes(std::as_bytes(std::span(values.lapic.regs))); });
  encoder.add(kVcpuMsrs, [&](StateWriter& out) {
    out.put(static_cast<uint32_t>(values.msrs.size()));
    for (const kvm_msr_entry& msr : values.msrs)
      put_fields(out, msr.index, msr.data);
  });
  encoder.add(kVcpuTsc, [&](StateWriter& out) { put_fields(out, values.tsc, values.tsc_khz); });
  encoder.add_struct(kVcpuEvents, values.events);
  encoder.add(kVcpuMpState, [&](StateWriter& out) { out.put(values.mp_state.mp_state); });
}

std::expected<VcpuValues, Error> decode_vcpu(StateSections& from, uint32_t cpu) {
  VcpuValues values;
  std::expected<void, Error> result;
  const auto take = [&](StateKind kind, const auto& read) {
    if (result)
      result = from.take(kind, kVersion, cpu, [&](StateReader& in) { read(in, values); });
  };
  using enum StateKind;
  take(kVcpuCpuid, get_cpuid);
  take(kVcpuSregs, get_sregs);
  take(kVcpuRegs, [](StateReader& in, VcpuValues& to) { get_struct(in, to.regs); });
  take(kVcpuXsave, get_xsave);
  take(kVcpuXcrs, get_xcrs);
  take(kVcpuDebugRegs, [](StateReader& in, VcpuValues& to) { get_struct(in, to.debugregs); });
  take(kVcpuLapic, get_lapic);
  take(kVcpuMsrs, get_msrs);
  take(kVcpuTsc, [](StateReader& in, VcpuValues& to) { get_fields(in, to.tsc, to.tsc_khz); });
  take(kVcpuEvents, [](StateReader& in, VcpuValues& to) { get_struct(in, to.events); });
  take(kVcpuMpState, [](StateReader& in, VcpuValues& to) { to.mp_state.mp_state = in.get<uint32_t>(); });
  if (!result)
    return std::unexpected(result.error());
  return values;
}

std::expected<std::vector<kvm_cpuid_entry2>, Error> decode_cpuid(StateSections& from, uint32_t cpu) {
  VcpuValues values;
  auto done = from.take(StateKind::kVcpuCpuid, kVersion, cpu, [&](StateReader& in) { get_cpuid(in, values); });
  if (!done)
    return std::unexpected(std::move(done.error()));
  return std::move(values.cpuid);
}

} // namespace stopvisor::vmm
