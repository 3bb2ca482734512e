// SPDX-License-Identifier: Apache-2.0
// code: calls functions that the host rewrites; each result is the old or the new one, never a mixture.
//
// One movabs is one instruction, so a stop cannot fall into it: unequal bytes are always a torn rewrite.
// Two values in one pass are one only if site 0 did not change during the pass, for the reason given in
// scenario_ledger.cpp.
#include "guest/scenarios.h"

namespace stopvisor::probe {
namespace {

constexpr uint32_t kPasses = 64;
constexpr uint64_t kEveryByte = 0x0101'0101'0101'0101;

// An honest call: the compiler does not know the address, and nothing remembers what it returned before.
inline uint64_t call_site(uint32_t site) {
  uint64_t address = code_site_gpa(site);
  asm volatile("" : "+r"(address));
  return reinterpret_cast<uint64_t (*)()>(address)();
}

inline bool mixed(uint64_t value) { return value != (value & 0xff) * kEveryByte; }

} // namespace

void code_slice(SliceState& state) {
  CpuResults& out = *state.results;
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    const uint64_t first = call_site(0);
    bool torn = mixed(first);
    bool two_values = false;
    for (uint32_t site = 1; site < kCodeSites; ++site) {
      const uint64_t value = call_site(site);
      torn |= mixed(value);
      two_values |= value != first;
    }
    const bool spanned = call_site(0) != first;
    ++out.code_calls;
    if (torn || (two_values && !spanned))
      ++out.code_torn;
    else if (spanned)
      ++out.code_spanned;
    out.code_last = first;
  }
}

void write_code_sites() {
  for (uint32_t site = 0; site < kCodeSites; ++site) {
    auto* at = reinterpret_cast<volatile uint8_t*>(code_site_gpa(site));
    at[0] = 0x48; // movabs $imm64, %rax
    at[1] = 0xb8;
    for (uint32_t i = 0; i < 8; ++i)
      at[kCodeImmediateOffset + i] = 0;
    at[kCodeImmediateOffset + 8] = 0xc3; // ret
  }
}

} // namespace stopvisor::probe
