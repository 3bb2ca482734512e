// SPDX-License-Identifier: Apache-2.0
// Where a schedule's allocations come from: one block that is forgotten as a whole.
//
// A schedule that is given up leaves fibers in the middle of functions whose destructors never run. What they
// allocated goes with the arena. Sanitizers keep their own allocator; leaks are no finding there.
#pragma once

#include <cstddef>

namespace stopvisor::sched {

// While one lives, operator new takes from the arena; starts with an empty one. They do not nest.
class ArenaScope {
public:
  ArenaScope() noexcept;
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;
};

// While one lives, it does not.
class ArenaPause {
public:
  ArenaPause() noexcept;
  ~ArenaPause();
  ArenaPause(const ArenaPause&) = delete;
  ArenaPause& operator=(const ArenaPause&) = delete;

private:
  bool was_on_;
};

} // namespace stopvisor::sched
