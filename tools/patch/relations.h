// SPDX-License-Identifier: Apache-2.0
// How a patch stands to those that are applied: which it needs, which it excludes, which it takes the place of.
#pragma once

#include <vector>

#include "tools/patch/ledger.h"

namespace stopvisor::patch {

struct Related {
  std::vector<Ledger::Entry> replaced;
  std::vector<Ledger::Entry> stays;
  Reasons reasons; // why it cannot be
};

// `replaces`: in the place of those of its name or its list, of which there must be one; else there must be none.
[[nodiscard]] Related relate(const Manifest& manifest, const std::vector<Ledger::Entry>& applied, bool replaces);

// Whether one of them is of its name or its list.
[[nodiscard]] bool would_replace(const Manifest& manifest, const std::vector<Ledger::Entry>& applied);

} // namespace stopvisor::patch
