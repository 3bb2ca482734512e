// SPDX-License-Identifier: Apache-2.0
// One place of a transaction: what was found out before the stop, and what is filled in under it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/patch/manifest.h"
#include "tools/patch/spaces.h"

namespace stopvisor::patch {

// The whole instructions that a write to code touches, at addresses of its own address space.
//
// A vCPU at `begin` has executed none of them and will execute the new ones: it is outside. One at a further
// instruction's beginning would go on in the middle of what was written.
struct Window {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool repeats = false;         // the first may be interrupted half way: a vCPU at `begin` is inside as well
  std::vector<uint64_t> starts; // of its instructions

  [[nodiscard]] uint64_t size() const noexcept { return end - begin; }
};

// What a site left behind when its patch was applied.
struct AppliedSite {
  size_t number = 0; // in the manifest, from 1
  Place place;
  SiteKind kind = SiteKind::kData;
  uint64_t address = 0; // the place was looked up to
  std::optional<Window> window;
  std::vector<std::pair<vmm::Gpa, uint64_t>> where; // guest memory, and lengths
  Bytes before;                                     // what a revert brings back
  Bytes after;
};

struct Site {
  std::string name; // "site 3 (sym:foo+0x4)"
  Place place;
  SiteKind kind = SiteKind::kData;
  size_t size = 0;
  size_t number = 0;
  const Write* write = nullptr;         // to apply, or
  const AppliedSite* applied = nullptr; // to take back

  // Before the stop:
  uint64_t decoded_at = 0; // the address it was looked up to then
  std::optional<Window> window;
  Bytes window_code; // what was decoded there; empty where the window is only a guess, or of a site to take back
  std::optional<size_t> function; // of Preparation::functions

  // Under the stop, but with their room:
  std::optional<Location> location;
  Pieces pieces; // empty where it could not be found
  Pieces window_pieces;
  Bytes found; // what is there
  Bytes base;  // the same without what this transaction takes back
  Bytes after; // what is to be there

  AppliedSite draft; // of the ledger's record: what is known before the stop, and room for the rest

  [[nodiscard]] bool is_there() const noexcept { return !pieces.list.empty(); }
};

} // namespace stopvisor::patch
