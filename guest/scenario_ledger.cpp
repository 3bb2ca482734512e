// SPDX-License-Identifier: Apache-2.0
// ledger: all words must be equal, though nothing but the host's stop makes them so.
//
// A stop may well fall between two loads of a pass: a held vCPU is not at a safe point. Such a pass would
// see old words, then new ones, without any update having been torn. So a pass reads word 0 again at its
// end, and is judged only if that did not change: the update was then complete before the pass or came
// after it, or it was not atomic. (Every update must write a value that differs from the one before.)
#include "guest/scenarios.h"

namespace stopvisor::probe {
namespace {

constexpr uint32_t kPasses = 256;

inline uint64_t load_word(uint32_t word) {
  return *reinterpret_cast<const volatile uint64_t*>(ledger_word_gpa(word));
}

} // namespace

void ledger_slice(SliceState& state) {
  CpuResults& out = *state.results;
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    const uint64_t first = load_word(0);
    uint64_t difference = 0;
#pragma GCC unroll 8
    for (uint32_t word = 1; word < kLedgerWords; ++word)
      difference |= load_word(word) ^ first;
    if (load_word(0) != first) {
      ++out.ledger_spanned;
      continue;
    }
    ++out.ledger_reads;
    if (difference != 0)
      ++out.ledger_torn;
    out.ledger_last = first;
  }
}

} // namespace stopvisor::probe
