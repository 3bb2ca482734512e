// SPDX-License-Identifier: Apache-2.0
// Does many like pieces of work on a few threads, and stops at the first that fails.
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <stop_token>
#include <string_view>

#include "vmm/error.h"
#include "vmm/progress.h"

namespace stopvisor::snapshot {

using vmm::Progress;

struct Work {
  std::string_view operation;
  std::string_view object;
  unsigned threads = 0; // 0: as many as there are processors, at most 4
  std::stop_token stop; // asked before each piece
  // The same, for who has more to say than that somebody called it off. May be empty; any of the threads calls it.
  std::function<std::expected<void, vmm::Error>()> go_on{};
};

// Calls work(n) for n from 0 to `pieces` - 1, each once, on several threads at once, in about that order.
// CONTEXT: blocks until nothing runs any more. RETURNS: the first error, or "was cancelled" (kFailed).
[[nodiscard]] std::expected<void, vmm::Error>
in_parallel(const Work& how, uint64_t pieces, const std::function<std::expected<void, vmm::Error>(uint64_t)>& work);

} // namespace stopvisor::snapshot
