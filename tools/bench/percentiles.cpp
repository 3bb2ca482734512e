// SPDX-License-Identifier: Apache-2.0
#include "tools/bench/percentiles.h"

#include <algorithm>

namespace stopvisor::tools {

Percentiles percentiles(std::vector<int64_t> series) {
  if (series.empty())
    return {};
  std::ranges::sort(series);
  const auto at = [&](size_t percent) {
    return series[std::min(series.size() - 1, series.size() * percent / 100)];
  };
  return {at(50), at(90), at(99), series.back()};
}

} // namespace stopvisor::tools
