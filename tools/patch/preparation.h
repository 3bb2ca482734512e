// SPDX-License-Identifier: Apache-2.0
// Everything of a transaction that can be done while the guest runs: addresses, functions, windows, rooms.
//
// What is found out here is looked at again under the stop: the guest may change it meanwhile.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tools/patch/check.h"
#include "tools/patch/guest.h"
#include "tools/patch/ledger.h"
#include "tools/patch/site.h"

namespace stopvisor::patch {

// A function's code as it was when it was decoded.
struct FunctionCopy {
  Place at;
  uint64_t address = 0;
  Bytes bytes;

  [[nodiscard]] uint64_t end() const noexcept { return address + bytes.size(); }
};

struct Preparation {
  Guest::Kernel kernel; // null where none is wanted
  uint64_t resets = 0;
  std::vector<Site> sites; // those to take back first
  std::vector<FunctionCopy> functions;
  // Of patches that stay: where they wrote, sorted, and their names.
  struct Foreign {
    uint64_t begin = 0, end = 0;
    std::string patch;
  };
  std::vector<Foreign> foreign;
  Reasons reasons; // that need no stop

  [[nodiscard]] bool writes_code() const noexcept;
};

// What a transaction does: takes records back, applies a manifest, or both.
struct Change {
  std::vector<Ledger::Entry> revert;
  const Manifest* apply = nullptr;  // may be null
  std::vector<Ledger::Entry> stays; // applied, and not touched
  bool of_all = false;              // nobody named a patch: sites are told with theirs
};

// Whether a change wants to know the guest's kernel.
[[nodiscard]] bool needs_kernel(const Change& change);

// `wanted` has operation, deadline and symbols. CONTEXT: no stop; makes a short one for registers. RETURNS: as
// Guest::under_stop().
[[nodiscard]] std::expected<Preparation, vmm::Error> prepare(Guest& guest, Guest::Wanted wanted,
                                                             const Change& change);

} // namespace stopvisor::patch
