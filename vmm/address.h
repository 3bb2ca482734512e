// SPDX-License-Identifier: Apache-2.0
// Address types: a guest physical and a guest virtual address are never mixed up.
#pragma once

#include <compare>
#include <cstdint>

namespace stopvisor::vmm {

struct Gpa {
  uint64_t value = 0;
  auto operator<=>(const Gpa&) const = default;
};

struct Gva {
  uint64_t value = 0;
  auto operator<=>(const Gva&) const = default;
};

} // namespace stopvisor::vmm
