// SPDX-License-Identifier: Apache-2.0
// dirty: rewrites memory at a given rate, each vCPU its own share of the area.
#include "guest/coming_and_going.h"
#include "guest/port.h"
#include "guest/scenarios.h"

namespace stopvisor::probe {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kPagesPerSlice = 64;
constexpr uint64_t kFourGiB = uint64_t{1} << 32;
constexpr uint64_t kAssumedTscHz = 2'000'000'000; // where it could not be measured

uint64_t low_bytes(const Memory& memory) {
  return memory.low_end > kDirtyGpa ? memory.low_end - kDirtyGpa : 0;
}

// The area is the RAM from kDirtyGpa up, then that above 4 GiB, as one run of offsets.
volatile uint64_t* page_at(const Memory& memory, uint64_t offset) {
  const uint64_t low = low_bytes(memory);
  return reinterpret_cast<volatile uint64_t*>(offset < low ? kDirtyGpa + offset : kFourGiB + (offset - low));
}

// Pages this slice may write: kPagesPerSlice, or what the rate has earned since the last slice.
uint64_t pages_due(SliceState& state, uint64_t bytes_per_second) {
  const uint64_t now = read_tsc();
  const uint64_t passed = now - state.dirty_last_tsc;
  state.dirty_last_tsc = now;
  if (bytes_per_second == 0)
    return kPagesPerSlice;
  const uint64_t hz = results().tsc_hz != 0 ? results().tsc_hz : kAssumedTscHz;
  const uint64_t ticks_per_page = hz * kPageBytes / bytes_per_second;
  if (ticks_per_page == 0)
    return kPagesPerSlice;
  const uint64_t most = kPagesPerSlice * ticks_per_page; // time lost in a stop is not made up for
  state.dirty_credit += passed < most ? passed : most;
  const uint64_t due = state.dirty_credit / ticks_per_page;
  const uint64_t pages = due < kPagesPerSlice ? due : kPagesPerSlice;
  state.dirty_credit -= pages * ticks_per_page;
  if (state.dirty_credit > most)
    state.dirty_credit = most;
  return pages;
}

} // namespace

uint64_t dirty_capacity(const Memory& memory) {
  const uint64_t high = memory.high_end > kFourGiB ? memory.high_end - kFourGiB : 0;
  return (low_bytes(memory) + high) / kPageBytes * kPageBytes;
}

void dirty_slice(SliceState& state) {
  const volatile Control& control = results().control; // the host may change it at any time
  const uint64_t capacity = dirty_capacity(state.memory);
  const uint64_t wanted = control.dirty_bytes;
  const uint64_t all_pages = (wanted < capacity ? wanted : capacity) / kPageBytes;
  const uint64_t cpus = __atomic_load_n(&results().cpus_present, __ATOMIC_RELAXED); // changes as vCPUs come and go
  const uint64_t share = rank_of(state.index) % cpus;
  const uint64_t begin = all_pages * share / cpus;
  const uint64_t count = all_pages * (share + 1) / cpus - begin;
  const uint64_t rate = control.dirty_rate;
  const uint64_t pages = pages_due(state, rate == 0 ? 0 : rate / cpus + 1);
  if (count == 0)
    return;
  for (uint64_t i = 0; i < pages; ++i) {
    if (state.dirty_next_page >= count) {
      state.dirty_next_page = 0;
      ++state.dirty_pass;
    }
    const uint64_t page = begin + state.dirty_next_page++;
    volatile uint64_t* words = page_at(state.memory, page * kPageBytes);
    // Every word depends on page, word and pass, so that no two pages are alike and none repeats.
    uint64_t value = (page << 24 ^ state.dirty_pass) * 0x9e37'79b9'7f4a'7c15;
    for (uint64_t word = 0; word < kPageBytes / sizeof(uint64_t); ++word)
      words[word] = value += 0x1000'0000'01b3;
    ++state.results->dirty_pages;
  }
}

} // namespace stopvisor::probe
