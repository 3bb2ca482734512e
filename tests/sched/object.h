// SPDX-License-Identifier: Apache-2.0
// What the happens-before hash keeps of one shared object.
//
// Two schedules that differ only in the order of independent steps lead to the same state. A hash of "who saw
// what" recognises them: each fiber has a hash of its history, each object the hash of the last write and of
// the reads since then. Equal hashes of all fibers mean equal states (CHESS calls it happens-before caching).
#pragma once

#include <cstdint>

namespace stopvisor::sched {

enum class Access { kRead, kWrite };

struct Object {
  uint64_t written = 0;
  uint64_t read = 0; // a sum: the order of reads does not matter
};

constexpr uint64_t mix(uint64_t hash, uint64_t value) noexcept {
  hash ^= value + 0x9e3779b97f4a7c15 + (hash << 6) + (hash >> 2);
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9; // splitmix64
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111eb;
  return hash ^ (hash >> 31);
}

// Records that the fiber with history `fiber` touches `object`.
constexpr void touch(uint64_t& fiber, Object& object, Access access) noexcept {
  if (access == Access::kRead) {
    fiber = mix(fiber, object.written + 1);
    object.read += mix(fiber, 3);
  } else {
    fiber = mix(fiber, object.written + (object.read ^ 2));
    object.written = fiber;
    object.read = 0;
  }
}

} // namespace stopvisor::sched
