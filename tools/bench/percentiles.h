// SPDX-License-Identifier: Apache-2.0
// Percentiles of a series of times.
#pragma once

#include <cstdint>
#include <vector>

namespace stopvisor::tools {

// Nanoseconds.
struct Percentiles {
  int64_t p50 = 0;
  int64_t p90 = 0;
  int64_t p99 = 0;
  int64_t max = 0;
};

// RETURNS: zeros for an empty series.
[[nodiscard]] Percentiles percentiles(std::vector<int64_t> series);

} // namespace stopvisor::tools
