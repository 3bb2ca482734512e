// SPDX-License-Identifier: Apache-2.0
#include "tests/sched/arena.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#include "tests/sched/fiber.h"

namespace stopvisor::sched {
namespace {

constexpr size_t kArenaBytes = size_t{8} * 1024 * 1024;
alignas(64) [[maybe_unused]] std::byte arena[kArenaBytes]; // sanitizers have their own
size_t arena_used = 0;
bool arena_on = false;

} // namespace

ArenaScope::ArenaScope() noexcept {
  arena_used = 0;
  arena_on = true;
}
ArenaScope::~ArenaScope() {
  arena_on = false;
}
ArenaPause::ArenaPause() noexcept : was_on_(arena_on) {
  arena_on = false;
}
ArenaPause::~ArenaPause() {
  arena_on = was_on_;
}

#if !defined(STOPVISOR_ASAN) && !defined(STOPVISOR_SCHED_TSAN)
namespace {

void* take(size_t size) {
  if (arena_on) {
    const size_t at = (arena_used + 63) & ~size_t{63};
    if (at + size <= kArenaBytes) {
      arena_used = at + size;
      return arena + at;
    }
  }
  if (void* const memory = std::aligned_alloc(64, (size + 63) & ~size_t{63}))
    return memory;
  throw std::bad_alloc();
}

void give_back(void* memory) noexcept {
  const auto at = reinterpret_cast<uintptr_t>(memory);
  const auto begin = reinterpret_cast<uintptr_t>(arena);
  if (at - begin >= kArenaBytes)
    std::free(memory);
}

} // namespace
} // namespace stopvisor::sched

void* operator new(size_t size) {
  return stopvisor::sched::take(size);
}
void operator delete(void* memory) noexcept {
  stopvisor::sched::give_back(memory);
}
void operator delete(void* memory, size_t) noexcept {
  stopvisor::sched::give_back(memory);
}

namespace stopvisor::sched {
#endif

} // namespace stopvisor::sched
