// SPDX-License-Identifier: Apache-2.0
// code: calls functions that the host rewrites; each result is the old or the new one, never a mixture.
//
// One movabs is one instruction, so a stop cannot fall into it: unequal bytes are always a torn rewrite.
// A pass over all sites is judged as one over the ledger's words.
#include "guest/one_update.h"
#include "guest/scenarios.h"

namespace stopvisor::probe {
namespace {

constexpr uint32_t kPasses = 256;
constexpr uint32_t kStride = 7; // odd: visits every site once
static_assert(kCodeSites % 2 == 0);
constexpr uint64_t kEveryByte = 0x0101'0101'0101'0101;

// An honest call: the compiler does not know the address, and nothing remembers what it returned before.
inline uint64_t call_site(uint32_t site) {
  uint64_t address = code_site_gpa(site);
  asm volatile("" : "+r"(address));
  return reinterpret_cast<uint64_t (*)()>(address)();
}

inline bool mixed(uint64_t value) {
  return value != (value & 0xff) * kEveryByte;
}

} // namespace

void code_slice(SliceState& state) {
  CpuResults& out = *state.results;
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    uint64_t values[kCodeSites + 1];
    bool torn = false;
    for (uint32_t i = 0; i <= kCodeSites; ++i) { // the last is site 0 again
      values[i] = call_site(i * kStride % kCodeSites);
      torn |= mixed(values[i]);
    }
    const Seen seen = judge(values);
    ++out.code_calls;
    if (torn || seen == Seen::kTornUpdate)
      ++out.code_torn;
    else if (seen == Seen::kAtomicUpdate)
      ++out.code_spanned;
    out.code_last = values[kCodeSites];
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
