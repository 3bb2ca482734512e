// SPDX-License-Identifier: Apache-2.0
// Names and bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; as Linux writes them in /proc/cpuinfo.
#include "vmm/state/cpu_features.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <string>

namespace stopvisor::vmm {
namespace {

enum Register : uint8_t { kEax, kEbx, kEcx, kEdx };
constexpr std::array<const char*, 4> kRegisterNames{"EAX", "EBX", "ECX", "EDX"};

// Registers that hold nothing but feature bits. `ours`: bits that depend on this machine or on what the guest has
// switched on, not on the host.
struct FeatureWord {
  uint32_t function;
  uint32_t index;
  Register where;
  uint32_t ours;
};
constexpr uint32_t kX2apic = 1U << 21, kTscDeadline = 1U << 24, kOsXsave = 1U << 27, kHypervisor = 1U << 31;
constexpr uint32_t kApic = 1U << 9, kHyperThreading = 1U << 28, kOsPku = 1U << 4;
constexpr std::array kWords{
    FeatureWord{0x1, 0, kEcx, kX2apic | kTscDeadline | kOsXsave | kHypervisor},
    FeatureWord{0x1, 0, kEdx, kApic | kHyperThreading},
    FeatureWord{0x7, 0, kEbx, 0},
    FeatureWord{0x7, 0, kEcx, kOsPku},
    FeatureWord{0x7, 0, kEdx, 0},
    FeatureWord{0x7, 1, kEax, 0},
    FeatureWord{0xd, 0, kEax, 0}, // components of the XSAVE area, as XCR0 numbers them
    FeatureWord{0xd, 0, kEdx, 0},
    FeatureWord{0xd, 1, kEax, 0},
    FeatureWord{0x8000'0001, 0, kEcx, 0},
    FeatureWord{0x8000'0001, 0, kEdx, kApic},
    FeatureWord{0x8000'0007, 0, kEdx, 0},
    FeatureWord{0x8000'0008, 0, kEbx, 0},
};

// Those that differ between processors in use; the others are told by leaf and bit.
struct FeatureName {
  uint32_t function;
  Register where;
  uint8_t bit;
  const char* name;
};
constexpr std::array kNames{
    FeatureName{0x1, kEcx, 0, "sse3"},
    FeatureName{0x1, kEcx, 1, "pclmulqdq"},
    FeatureName{0x1, kEcx, 9, "ssse3"},
    FeatureName{0x1, kEcx, 12, "fma"},
    FeatureName{0x1, kEcx, 13, "cx16"},
    FeatureName{0x1, kEcx, 17, "pcid"},
    FeatureName{0x1, kEcx, 19, "sse4_1"},
    FeatureName{0x1, kEcx, 20, "sse4_2"},
    FeatureName{0x1, kEcx, 22, "movbe"},
    FeatureName{0x1, kEcx, 23, "popcnt"},
    FeatureName{0x1, kEcx, 25, "aes"},
    FeatureName{0x1, kEcx, 26, "xsave"},
    FeatureName{0x1, kEcx, 28, "avx"},
    FeatureName{0x1, kEcx, 29, "f16c"},
    FeatureName{0x1, kEcx, 30, "rdrand"},
    FeatureName{0x7, kEbx, 0, "fsgsbase"},
    FeatureName{0x7, kEbx, 3, "bmi1"},
    FeatureName{0x7, kEbx, 4, "hle"},
    FeatureName{0x7, kEbx, 5, "avx2"},
    FeatureName{0x7, kEbx, 7, "smep"},
    FeatureName{0x7, kEbx, 8, "bmi2"},
    FeatureName{0x7, kEbx, 9, "erms"},
    FeatureName{0x7, kEbx, 10, "invpcid"},
    FeatureName{0x7, kEbx, 11, "rtm"},
    FeatureName{0x7, kEbx, 14, "mpx"},
    FeatureName{0x7, kEbx, 16, "avx512f"},
    FeatureName{0x7, kEbx, 17, "avx512dq"},
    FeatureName{0x7, kEbx, 18, "rdseed"},
    FeatureName{0x7, kEbx, 19, "adx"},
    FeatureName{0x7, kEbx, 20, "smap"},
    FeatureName{0x7, kEbx, 21, "avx512ifma"},
    FeatureName{0x7, kEbx, 23, "clflushopt"},
    FeatureName{0x7, kEbx, 24, "clwb"},
    FeatureName{0x7, kEbx, 28, "avx512cd"},
    FeatureName{0x7, kEbx, 29, "sha_ni"},
    FeatureName{0x7, kEbx, 30, "avx512bw"},
    FeatureName{0x7, kEbx, 31, "avx512vl"},
    FeatureName{0x7, kEcx, 1, "avx512vbmi"},
    FeatureName{0x7, kEcx, 2, "umip"},
    FeatureName{0x7, kEcx, 3, "pku"},
    FeatureName{0x7, kEcx, 6, "avx512_vbmi2"},
    FeatureName{0x7, kEcx, 8, "gfni"},
    FeatureName{0x7, kEcx, 9, "vaes"},
    FeatureName{0x7, kEcx, 10, "vpclmulqdq"},
    FeatureName{0x7, kEcx, 11, "avx512_vnni"},
    FeatureName{0x7, kEcx, 12, "avx512_bitalg"},
    FeatureName{0x7, kEcx, 14, "avx512_vpopcntdq"},
    FeatureName{0x7, kEcx, 16, "la57"},
    FeatureName{0x7, kEcx, 22, "rdpid"},
    FeatureName{0x7, kEdx, 4, "fsrm"},
    FeatureName{0x7, kEdx, 24, "amx_tile"},
    FeatureName{0x7, kEdx, 26, "spec_ctrl"},
    FeatureName{0x7, kEdx, 29, "arch_capabilities"},
    FeatureName{0x7, kEdx, 31, "ssbd"},
    FeatureName{0xd, kEax, 2, "XSAVE of AVX"},
    FeatureName{0xd, kEax, 5, "XSAVE of AVX-512 masks"},
    FeatureName{0xd, kEax, 6, "XSAVE of AVX-512 upper halves"},
    FeatureName{0xd, kEax, 7, "XSAVE of AVX-512 registers 16 to 31"},
    FeatureName{0xd, kEax, 9, "XSAVE of protection keys"},
    FeatureName{0xd, kEax, 18, "XSAVE of AMX tiles"},
    FeatureName{0x8000'0001, kEcx, 0, "lahf_lm"},
    FeatureName{0x8000'0001, kEcx, 5, "abm"},
    FeatureName{0x8000'0001, kEcx, 6, "sse4a"},
    FeatureName{0x8000'0001, kEdx, 20, "nx"},
    FeatureName{0x8000'0001, kEdx, 26, "pdpe1gb"},
    FeatureName{0x8000'0001, kEdx, 27, "rdtscp"},
    FeatureName{0x8000'0001, kEdx, 29, "lm"},
    FeatureName{0x8000'0007, kEdx, 8, "invariant TSC"},
};

uint32_t word_of(std::span<const kvm_cpuid_entry2> leaves, const FeatureWord& word) {
  const auto found = std::ranges::find_if(leaves, [&](const kvm_cpuid_entry2& leaf) {
    const bool by_index = (leaf.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0;
    return leaf.function == word.function && (by_index ? leaf.index == word.index : word.index == 0);
  });
  if (found == leaves.end())
    return 0;
  return word.where == kEax   ? found->eax
         : word.where == kEbx ? found->ebx
         : word.where == kEcx ? found->ecx
                              : found->edx;
}

std::string name_of(const FeatureWord& word, uint8_t bit) {
  if (word.index == 0)
    for (const FeatureName& name : kNames)
      if (name.function == word.function && name.where == word.where && name.bit == bit)
        return name.name;
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "CPUID 0x%x.%u %s bit %u", word.function, word.index,
                kRegisterNames[word.where], unsigned{bit});
  return text.data();
}

} // namespace

std::expected<void, Error> check_cpu_features(std::span<const kvm_cpuid_entry2> told,
                                              std::span<const kvm_cpuid_entry2> supported) {
  for (const FeatureWord& word : kWords) {
    const uint32_t lacking = word_of(told, word) & ~word_of(supported, word) & ~word.ours;
    if (lacking != 0)
      return std::unexpected(Error{"restore", "this host's processor",
                                   "it lacks " + name_of(word, static_cast<uint8_t>(std::countr_zero(lacking))) +
                                       ", which the guest was told it has",
                                   Status::kRefused});
  }
  return {};
}

} // namespace stopvisor::vmm
