// SPDX-License-Identifier: Apache-2.0
// ledger: all words must be equal, though nothing but the host's stop makes them so.
#include "guest/one_update.h"
#include "guest/scenarios.h"

namespace stopvisor::probe {
namespace {

constexpr uint32_t kPasses = 256;
constexpr uint32_t kStride = 37; // odd: visits every word once, never two neighbours in a row
static_assert(kLedgerWords % 2 == 0);

inline uint64_t load_word(uint32_t word) {
  return *reinterpret_cast<const volatile uint64_t*>(ledger_word_gpa(word));
}

} // namespace

void ledger_slice(SliceState& state) {
  CpuResults& out = *state.results;
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    uint64_t values[kLedgerWords + 1];
#pragma GCC unroll 8
    for (uint32_t i = 0; i <= kLedgerWords; ++i)
      values[i] = load_word(i * kStride % kLedgerWords); // the last is word 0 again
    ++out.ledger_reads;
    switch (judge(values)) {
    case Seen::kOneValue:
      break;
    case Seen::kAtomicUpdate:
      ++out.ledger_spanned;
      break;
    case Seen::kTornUpdate:
      ++out.ledger_torn;
      break;
    }
    out.ledger_last = values[kLedgerWords];
  }
}

} // namespace stopvisor::probe
