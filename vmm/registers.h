// SPDX-License-Identifier: Apache-2.0
// A vCPU's architectural registers as the VMM's callers see them, free of KVM's headers.
#pragma once

#include <array>
#include <cstdint>

namespace stopvisor::vmm {

struct Segment {
  uint64_t base = 0;
  uint32_t limit = 0;
  uint16_t selector = 0;
  uint8_t type = 0;
  uint8_t dpl = 0;
  bool present = false;
  bool long_mode = false;
  bool default_32 = false;

  bool operator==(const Segment&) const = default;
};

struct Registers {
  // rax rbx rcx rdx rsi rdi rsp rbp r8 .. r15, in this order
  std::array<uint64_t, 16> general{};
  uint64_t rip = 0;
  uint64_t rflags = 0;
  Segment cs, ds, es, fs, gs, ss, tr, ldt;
  uint64_t gdt_base = 0, idt_base = 0;
  uint16_t gdt_limit = 0, idt_limit = 0;
  uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0, cr8 = 0, efer = 0, apic_base = 0;
  bool halted = false;  // in HLT
  bool waiting = false; // not started: waits for INIT/SIPI

  bool operator==(const Registers&) const = default;
  [[nodiscard]] unsigned cpl() const noexcept { return ss.dpl; }
};

inline constexpr std::array<const char*, 16> kGeneralNames{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
                                                           "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

} // namespace stopvisor::vmm
