// SPDX-License-Identifier: Apache-2.0
// CPUID, asked at CPL 0, and the map of high memory.
#include "guest/machine.h"

#include "guest/kernel_call.h"
#include "guest/layout.h"
#include "guest/probe_abi.h"

extern "C" uint64_t probe_pdpt[512]; // page_tables.S

namespace stopvisor::probe {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr uint64_t kTable = 0x27;     // present, writable, user, accessed
constexpr uint64_t kLargePage = 0xe7; // the same, dirty, 2 MiB or 1 GiB page

} // namespace

uint32_t cpus_told() {
  uint32_t told = 0;
  if (cpuid(0).eax >= 0xb) {
    for (uint32_t level = 0; level < 8; ++level) {
      const CpuidLeaf leaf = cpuid(0xb, level);
      if ((leaf.ecx >> 8 & 0xff) == 0)
        break;
      told = leaf.ebx & 0xffff;
    }
  }
  if (told == 0) {
    const CpuidLeaf leaf = cpuid(1);
    told = (leaf.edx >> 28 & 1) != 0 ? leaf.ebx >> 16 & 0xff : 1;
  }
  if (told == 0)
    return 1;
  return told < kMaxCpus ? told : kMaxCpus;
}

uint64_t tsc_hz_told() {
  constexpr uint32_t kHypervisor = 0x4000'0000;
  constexpr uint32_t kTiming = 0x4000'0010; // EAX: TSC in kHz (VMware's, KVM's and others' convention)
  if ((cpuid(1).ecx >> 31 & 1) != 0 && cpuid(kHypervisor).eax >= kTiming) {
    if (const uint32_t khz = cpuid(kTiming).eax; khz != 0)
      return uint64_t{khz} * 1000;
  }
  if (cpuid(0).eax >= 0x15) {
    const CpuidLeaf leaf = cpuid(0x15); // Intel SDM vol. 3, 19.7.3
    if (leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0)
      return uint64_t{leaf.ecx} * leaf.ebx / leaf.eax;
  }
  return 0;
}

void map_high_memory(Memory& memory) {
  if (memory.high_end <= 4 * kGiB)
    return;
  const bool giant = cpuid(0x8000'0000).eax >= 0x8000'0001 && (cpuid(0x8000'0001).edx >> 26 & 1) != 0;
  const uint64_t reach = giant ? 512 * kGiB : (4 + uint64_t{PROBE_HIGH_TABLES}) * kGiB;
  if (memory.high_end > reach)
    memory.high_end = reach;
  auto* tables = reinterpret_cast<volatile uint64_t*>(PROBE_HIGH_TABLES_GPA);
  for (uint64_t gib = 4; gib * kGiB < memory.high_end; ++gib) {
    if (giant) {
      probe_pdpt[gib] = gib * kGiB | kLargePage;
      continue;
    }
    const uint64_t first = (gib - 4) * 512;
    for (uint64_t entry = 0; entry < 512; ++entry)
      tables[first + entry] = (gib * kGiB + entry * 0x20'0000) | kLargePage;
    probe_pdpt[gib] = reinterpret_cast<uint64_t>(tables + first) | kTable;
  }
}

} // namespace stopvisor::probe
