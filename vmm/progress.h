// SPDX-License-Identifier: Apache-2.0
// How far something that takes long is.
#pragma once

#include <atomic>
#include <cstdint>

namespace stopvisor::vmm {

// CONTEXT: one writes, or several add; any thread may look. Relaxed: figures for people, nothing is concluded from
// them.
struct Progress {
  std::atomic<uint64_t> done_bytes = 0;
  std::atomic<uint64_t> total_bytes = 0; // 0: not known yet
};

} // namespace stopvisor::vmm
