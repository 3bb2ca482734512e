// SPDX-License-Identifier: Apache-2.0
// gap: how long the guest was away, as its own clock tells.
#include "guest/port.h"
#include "guest/scenarios.h"

namespace stopvisor::probe {
namespace {

constexpr uint32_t kReads = 4096;

// floor(log2(ticks)), cut to the histogram; 0 and 1 share the first bucket.
uint32_t bucket_of(uint64_t ticks) {
  const uint32_t bucket = 63 - static_cast<uint32_t>(__builtin_clzll(ticks | 1));
  return bucket < kGapBuckets ? bucket : kGapBuckets - 1;
}

} // namespace

void gap_slice(SliceState& state) {
  CpuResults& out = *state.results;
  uint64_t last = state.gap_last_tsc != 0 ? state.gap_last_tsc : read_tsc();
  uint64_t max = out.gap_max_ticks;
  for (uint32_t i = 0; i < kReads; ++i) {
    const uint64_t now = read_tsc();
    const uint64_t jump = now > last ? now - last : 0; // a vCPU may move to a core whose TSC is behind
    ++out.gap_histogram[bucket_of(jump)];
    if (jump > max) {
      max = jump;
      out.gap_max_ticks = max;
    }
    last = now;
  }
  out.gap_reads += kReads;
  state.gap_last_tsc = last;
}

} // namespace stopvisor::probe
