// SPDX-License-Identifier: Apache-2.0
#include "vmm/did_you_mean.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace stopvisor::vmm {
namespace {

constexpr size_t kFarthest = 2;

size_t edit_distance(std::string_view one, std::string_view other) {
  std::vector<size_t> row(other.size() + 1);
  for (size_t j = 0; j < row.size(); ++j)
    row[j] = j;
  for (size_t i = 1; i <= one.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= other.size(); ++j) {
      const size_t change = diagonal + (one[i - 1] == other[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, change}));
    }
  }
  return row.back();
}

} // namespace

std::string did_you_mean(std::string_view given, std::span<const std::string> known) {
  const auto distance = [given](std::string_view word) -> size_t { // a beginning is as good as a slip of the finger
    return word.starts_with(given) ? 1 : edit_distance(given, word);
  };
  const auto nearest = std::ranges::min_element(known, {}, distance);
  return nearest != known.end() && distance(*nearest) <= kFarthest ? *nearest : "";
}

} // namespace stopvisor::vmm
