// SPDX-License-Identifier: Apache-2.0
// The few things CPL 3 code cannot do itself, as calls into traps.S.
//
// CONTEXT: any vCPU at CPL 3. Each call costs about a dozen CPL 0 instructions.
#pragma once

#include <stdint.h>

namespace stopvisor::probe {

// The order is that of the table `calls` in traps.S.
enum class KernelCall : uint64_t {
  kWaitForInterrupt = 0,
  kWriteMsr = 1,
  kReadMsr = 2,
  kCpuid = 3,
  kEnableInterrupts = 4,
  kTripleFault = 5,
  kUnemulatable = 6,
  kPark = 7,
  kWriteLast = 8,
};

struct CpuidLeaf {
  uint32_t eax, ebx, ecx, edx;
};

// RETURNS RDX:RAX as the call left them, low halves only: what RDMSR answers.
inline uint64_t kernel_call(KernelCall call, uint64_t rdi = 0, uint64_t rsi = 0, uint64_t rdx = 0,
                            void* r8_pointer = nullptr) {
  uint64_t rax = static_cast<uint64_t>(call);
  register void* r8 asm("r8") = r8_pointer;
  // The callee clobbers what CPUID and RDMSR do, and pushes one address: there is no red zone.
  asm volatile("call probe_kernel_call"
               : "+a"(rax), "+d"(rdx)
               : "D"(rdi), "S"(rsi), "r"(r8)
               : "rcx", "memory", "cc");
  return rdx << 32 | (rax & 0xffff'ffff);
}

// Waits in HLT, interrupts on, for the next interrupt. Returns at once while the CpuBlock holds a note.
inline void idle() {
  kernel_call(KernelCall::kWaitForInterrupt);
}

// Writes 4 bytes to a port as the last thing this vCPU does: interrupts are off, and HLT follows, for ever.
[[noreturn]] inline void write_last(uint16_t port, uint32_t value) {
  kernel_call(KernelCall::kWriteLast, port, value);
  __builtin_unreachable();
}

inline void write_msr(uint32_t msr, uint64_t value) {
  kernel_call(KernelCall::kWriteMsr, msr, value & 0xffff'ffff, value >> 32);
}

inline uint64_t read_msr(uint32_t msr) {
  return kernel_call(KernelCall::kReadMsr, msr);
}

// CPUID as CPL 0 sees it: where CPL 3 runs natively, CPUID there may be the host's.
inline CpuidLeaf cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  CpuidLeaf answer{};
  kernel_call(KernelCall::kCpuid, leaf, subleaf, 0, &answer);
  return answer;
}

} // namespace stopvisor::probe
