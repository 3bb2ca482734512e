// SPDX-License-Identifier: Apache-2.0
#include "vmm/exit_report.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <span>

#include "vmm/page_walk.h"

namespace stopvisor::vmm {
namespace {

struct Name {
  uint32_t reason;
  const char* text;
};
#define STOPVISOR_EXIT(name)                                                                                       \
  Name {                                                                                                           \
    KVM_EXIT_##name, "KVM_EXIT_" #name                                                                             \
  }
constexpr std::array kNames{
    STOPVISOR_EXIT(UNKNOWN),
    STOPVISOR_EXIT(EXCEPTION),
    STOPVISOR_EXIT(IO),
    STOPVISOR_EXIT(HYPERCALL),
    STOPVISOR_EXIT(DEBUG),
    STOPVISOR_EXIT(HLT),
    STOPVISOR_EXIT(MMIO),
    STOPVISOR_EXIT(IRQ_WINDOW_OPEN),
    STOPVISOR_EXIT(SHUTDOWN),
    STOPVISOR_EXIT(FAIL_ENTRY),
    STOPVISOR_EXIT(INTR),
    STOPVISOR_EXIT(SET_TPR),
    STOPVISOR_EXIT(TPR_ACCESS),
    STOPVISOR_EXIT(NMI),
    STOPVISOR_EXIT(INTERNAL_ERROR),
    STOPVISOR_EXIT(SYSTEM_EVENT),
    STOPVISOR_EXIT(IOAPIC_EOI),
    STOPVISOR_EXIT(HYPERV),
    STOPVISOR_EXIT(X86_RDMSR),
    STOPVISOR_EXIT(X86_WRMSR),
    STOPVISOR_EXIT(DIRTY_RING_FULL),
    STOPVISOR_EXIT(AP_RESET_HOLD),
    STOPVISOR_EXIT(X86_BUS_LOCK),
    STOPVISOR_EXIT(XEN),
    STOPVISOR_EXIT(NOTIFY),
    Name{39, "KVM_EXIT_MEMORY_FAULT"}, // since Linux 6.8
};
#undef STOPVISOR_EXIT

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%" PRIx64, value);
  return text;
}

const char* suberror_name(uint32_t suberror) {
  switch (suberror) {
  case KVM_INTERNAL_ERROR_EMULATION:
    return "KVM cannot emulate the instruction";
  case KVM_INTERNAL_ERROR_SIMUL_EX:
    return "an exception while another was being delivered";
  case KVM_INTERNAL_ERROR_DELIVERY_EV:
    return "an exit while an event was being delivered";
  case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
    return "an exit reason KVM does not know";
  default:
    return "unknown";
  }
}

std::string internal_error(const kvm_run& run) {
  std::string text =
      "suberror " + std::to_string(run.internal.suberror) + ", " + suberror_name(run.internal.suberror);
  const uint32_t words = std::min(run.internal.ndata, static_cast<uint32_t>(std::size(run.internal.data)));
  for (uint32_t i = 0; i < words; ++i)
    text += (i == 0 ? "; data " : " ") + hex(run.internal.data[i]);
  return text;
}

void add_segment(std::string& text, const char* name, const Segment& segment) {
  char line[128];
  std::snprintf(line, sizeof line, "  %s %04x base %016" PRIx64 " limit %08x type %x dpl %u%s%s%s\n", name,
                unsigned{segment.selector}, segment.base, segment.limit, unsigned{segment.type},
                unsigned{segment.dpl}, segment.present ? "" : " absent", segment.long_mode ? " 64-bit" : "",
                segment.default_32 ? " 32-bit" : "");
  text += line;
}

void add_registers(std::string& text, const Registers& registers) {
  char line[160];
  std::snprintf(line, sizeof line, "  rip %016" PRIx64 " rflags %08" PRIx64 " cpl %u%s\n", registers.rip,
                registers.rflags, registers.cpl(), registers.halted ? " halted" : "");
  text += line;
  for (size_t i = 0; i < registers.general.size(); i += 4) {
    text += " ";
    for (size_t j = i; j < i + 4; ++j) {
      std::snprintf(line, sizeof line, " %-3s %016" PRIx64, kGeneralNames[j], registers.general[j]);
      text += line;
    }
    text += "\n";
  }
  std::snprintf(line, sizeof line,
                "  cr0 %08" PRIx64 " cr2 %016" PRIx64 " cr3 %016" PRIx64 " cr4 %08" PRIx64 " efer %04" PRIx64 "\n",
                registers.cr0, registers.cr2, registers.cr3, registers.cr4, registers.efer);
  text += line;
  add_segment(text, "cs", registers.cs);
  add_segment(text, "ss", registers.ss);
  std::snprintf(line, sizeof line, "  gdt %016" PRIx64 " limit %04x, idt %016" PRIx64 " limit %04x\n",
                registers.gdt_base, unsigned{registers.gdt_limit}, registers.idt_base,
                unsigned{registers.idt_limit});
  text += line;
}

// Up to 15 bytes, the longest instruction; fewer where the next page is not there.
void add_code(std::string& text, const Registers& registers, const GuestMemory& memory) {
  constexpr uint64_t kLongestInstruction = 15;
  // In 64-bit mode CS has no base; elsewhere addresses are 32 bits wide.
  const uint64_t start = registers.cs.long_mode ? registers.rip : (registers.cs.base + registers.rip) & 0xffff'ffff;
  text += "  bytes at rip:";
  for (uint64_t i = 0; i < kLongestInstruction; ++i) {
    std::byte byte{};
    const auto place = translate("read code", Gva{start + i}, registers, memory);
    if (!place || !memory.read(place->gpa, std::span(&byte, 1))) {
      if (i == 0)
        text += " none, " + (place ? hex(place->gpa.value) + " is not RAM" : place.error().message());
      break;
    }
    char digits[4];
    std::snprintf(digits, sizeof digits, " %02x", std::to_integer<unsigned>(byte));
    text += digits;
  }
  text += "\n";
}

} // namespace

std::string exit_name(uint32_t reason) {
  const auto* const found =
      std::find_if(kNames.begin(), kNames.end(), [reason](const Name& name) { return name.reason == reason; });
  return found != kNames.end() ? found->text : "KVM_EXIT_" + std::to_string(reason);
}

std::string describe_exit(const kvm_run& run) {
  const std::string name = exit_name(run.exit_reason);
  switch (run.exit_reason) {
  case KVM_EXIT_SHUTDOWN:
    return "triple fault (" + name + ")";
  case KVM_EXIT_INTERNAL_ERROR:
    return name + ": " + internal_error(run);
  case KVM_EXIT_FAIL_ENTRY:
    return name + ": the CPU refused to enter the guest, hardware reason " +
           hex(run.fail_entry.hardware_entry_failure_reason);
  case KVM_EXIT_UNKNOWN:
    return name + ": hardware reason " + hex(run.hw.hardware_exit_reason);
  case KVM_EXIT_SYSTEM_EVENT:
    return name + ": type " + std::to_string(run.system_event.type);
  default:
    return name + ": this VMM does not handle it";
  }
}

std::string fatal_report(uint32_t cpu, const std::string& reason, const std::expected<Registers, Error>& registers,
                         const GuestMemory& memory) {
  std::string text = "vCPU " + std::to_string(cpu) + ": " + reason + "\n";
  if (!registers)
    return text + "  registers: " + registers.error().message() + "\n";
  add_registers(text, *registers);
  add_code(text, *registers, memory);
  return text;
}

} // namespace stopvisor::vmm
