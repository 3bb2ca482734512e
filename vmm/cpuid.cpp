// SPDX-License-Identifier: Apache-2.0
// Leaves as the Intel SDM, volume 2, CPUID, and the AMD APM, volume 3, appendix E, have them.
#include "vmm/cpuid.h"

#include <cpuid.h>

#include <algorithm>
#include <bit>

namespace stopvisor::vmm {
namespace {

constexpr uint32_t kX2apic = 1u << 21;         // leaf 1, ECX
constexpr uint32_t kTscDeadline = 1u << 24;    // leaf 1, ECX
constexpr uint32_t kHypervisor = 1u << 31;     // leaf 1, ECX
constexpr uint32_t kHyperThreading = 1u << 28; // leaf 1, EDX: EBX[23:16] counts

// Bits of an APIC id that number the cores of the one package.
uint32_t core_bits(uint32_t cpus) {
  return static_cast<uint32_t>(std::bit_width(cpus - 1));
}

void set_basic(kvm_cpuid_entry2& leaf, const KvmSystem& system, uint32_t cpu, uint32_t cpus) {
  const uint32_t ids = std::min(1u << core_bits(cpus), 255u);
  leaf.ebx = (leaf.ebx & 0x0000'ffffu) | ids << 16 | (cpu & 0xff) << 24;
  if (cpus > 1)
    leaf.edx |= kHyperThreading;
  leaf.ecx |= kX2apic | kHypervisor; // KVM's local APIC always has x2APIC mode
  // KVM leaves this bit to us: the in-kernel local APIC has it where the capability says so.
  if (system.capability(KVM_CAP_TSC_DEADLINE_TIMER) != 0)
    leaf.ecx |= kTscDeadline;
}

// Leaf 4: how many ids share a cache, and how many cores a package has; caches up to level 2 are a core's own.
void set_caches(kvm_cpuid_entry2& leaf, uint32_t cpus) {
  if ((leaf.eax & 0x1f) == 0)
    return;
  const uint32_t level = leaf.eax >> 5 & 7;
  const uint32_t sharing = level >= 3 ? (1u << core_bits(cpus)) - 1 : 0;
  const uint32_t cores = std::min((1u << core_bits(cpus)) - 1, 63u);
  leaf.eax = (leaf.eax & 0x3fff) | std::min(sharing, 0xfffu) << 14 | cores << 26;
}

void set_name(kvm_cpuid_entry2& leaf) {
  if ((leaf.eax | leaf.ebx | leaf.ecx | leaf.edx) == 0)
    (void)__get_cpuid(leaf.function, &leaf.eax, &leaf.ebx, &leaf.ecx, &leaf.edx);
}

// Leaves 0xb and 0x1f: one thread a core, all cores in one package.
void add_topology(std::vector<kvm_cpuid_entry2>& leaves, uint32_t function, uint32_t cpu, uint32_t cpus) {
  constexpr uint32_t kThreadLevel = 1u << 8;
  constexpr uint32_t kCoreLevel = 2u << 8;
  std::erase_if(leaves, [function](const kvm_cpuid_entry2& leaf) { return leaf.function == function; });
  for (uint32_t index = 0; index < 3; ++index) {
    kvm_cpuid_entry2 leaf{};
    leaf.function = function;
    leaf.index = index;
    leaf.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    leaf.eax = index == 1 ? core_bits(cpus) : 0;
    leaf.ebx = index == 0 ? 1 : index == 1 ? cpus : 0;
    leaf.ecx = index | (index == 0 ? kThreadLevel : index == 1 ? kCoreLevel : 0);
    leaf.edx = cpu; // the x2APIC id
    leaves.push_back(leaf);
  }
}

} // namespace

std::vector<kvm_cpuid_entry2> guest_cpuid(const KvmSystem& system, uint32_t cpu, uint32_t cpus) {
  std::vector<kvm_cpuid_entry2> leaves = system.supported_cpuid();
  uint32_t highest = 0;
  for (kvm_cpuid_entry2& leaf : leaves) {
    switch (leaf.function) {
    case 0:
      highest = leaf.eax = std::max(leaf.eax, 0xbu); // topology is ours to tell, whatever the host has
      break;
    case 1:
      set_basic(leaf, system, cpu, cpus);
      break;
    case 4:
      set_caches(leaf, cpus);
      break;
    case 0x8000'0008: // AMD: ECX[7:0] cores - 1, ECX[15:12] bits of the core id; reserved on others
      if (leaf.ecx != 0)
        leaf.ecx = (cpus - 1 > 0xff ? 0xff : cpus - 1) | core_bits(cpus) << 12;
      break;
    case 0x8000'001e: // AMD: extended APIC id, core id, one node
      leaf.eax = cpu;
      leaf.ebx = cpu & 0xff;
      leaf.ecx = 0;
      break;
    case 0x8000'001d: // AMD: the caches, as leaf 4 has them, but for the number of cores
      set_caches(leaf, cpus);
      leaf.eax &= 0x03ff'ffff;
      break;
    case 0x8000'0002: // the processor's name, in three parts: older KVMs leave it empty
    case 0x8000'0003:
    case 0x8000'0004:
      set_name(leaf);
      break;
    default:
      break;
    }
  }
  add_topology(leaves, 0xb, cpu, cpus);
  if (highest >= 0x1f)
    add_topology(leaves, 0x1f, cpu, cpus);
  return leaves;
}

} // namespace stopvisor::vmm
