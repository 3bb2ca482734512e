// SPDX-License-Identifier: Apache-2.0
// The head of a batch of pages, as it is in the stream: runs of pages, each with what it is made of.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tools/migrate/page_batch.h"

namespace stopvisor::migrate {

enum class RunKind : uint8_t { // for ever
  kData = 0,                   // the next pages of the batch's data
  kZeros = 1,                  // zeros
  kCopies = 2,                 // each is what the data page `source` of the batch is
};

// This program runs on little-endian machines alone.
struct BatchHead {
  uint32_t runs = 0;
  uint32_t data_pages = 0;
};
struct PageRun {
  uint64_t gpa = 0;
  uint32_t pages = 0;
  RunKind kind = RunKind::kData;
  uint8_t zero = 0;
  uint16_t source = 0; // of kCopies
};
static_assert(sizeof(BatchHead) == 8 && sizeof(PageRun) == 16);

[[nodiscard]] inline uint64_t end_of(const PageRun& run) noexcept {
  return run.gpa + uint64_t{run.pages} * kPageBytes;
}

inline constexpr size_t kBatchBytes = kBatchPages * kPageBytes;
inline constexpr uint64_t kMaxRunEnd = 1ULL << 52; // where the addresses of the architecture end

} // namespace stopvisor::migrate
