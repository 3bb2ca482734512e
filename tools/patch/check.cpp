// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/check.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace stopvisor::patch {
namespace {

struct Entry {
  const char* name;
  Check check;
  bool forceable;
  bool passes_by;
};

constexpr std::array<Entry, kCheckCount> kChecks{
    Entry{"target", Check::kTarget, true, false},
    Entry{"relations", Check::kRelations, false, false},
    Entry{"translation", Check::kTranslation, false, false},
    Entry{"rights", Check::kRights, true, false},
    Entry{"expect", Check::kExpect, true, false},
    Entry{"require", Check::kRequire, true, false},
    Entry{"rip", Check::kRip, true, true},
    Entry{"frames", Check::kFrames, true, true},
    Entry{"stacks", Check::kStacks, true, true},
    Entry{"branch", Check::kBranch, true, false},
    Entry{"breakpoint", Check::kBreakpoint, true, true},
    Entry{"overlap", Check::kOverlap, false, false},
    Entry{"tables", Check::kTables, true, false},
    Entry{"ensure", Check::kEnsure, false, false},
    Entry{"drift", Check::kDrift, true, false},
};

const Entry& entry_of(Check check) noexcept {
  return kChecks[static_cast<size_t>(check)];
}

} // namespace

const char* name_of(Check check) noexcept {
  return entry_of(check).name;
}

std::optional<Check> check_named(std::string_view name) noexcept {
  for (const Entry& entry : kChecks)
    if (name == entry.name)
      return entry.check;
  return std::nullopt;
}

bool may_be_forced(Check check) noexcept {
  return entry_of(check).forceable;
}

bool passes_by(Check check) noexcept {
  return entry_of(check).passes_by;
}

std::string forceable_names() {
  std::string names;
  for (const Entry& entry : kChecks)
    if (entry.forceable)
      names += (names.empty() ? "" : ", ") + std::string(entry.name);
  return names;
}

std::vector<Check> CheckSet::list() const {
  std::vector<Check> list;
  for (const Entry& entry : kChecks)
    if (contains(entry.check))
      list.push_back(entry.check);
  return list;
}

void Reasons::add(Check check, std::string text) {
  if (takes_text(check))
    list_.push_back({check, std::move(text)});
  ++counts_[size_t(check)];
}

void Reasons::add(const Reasons& others, const CheckSet& wanted, bool has) {
  std::array<size_t, kCheckCount> rest = others.counts_;
  for (const Reason& reason : others.list_) {
    --rest[size_t(reason.check)];
    if (wanted.contains(reason.check) == has)
      add(reason.check, reason.text);
  }
  for (size_t check = 0; check < kCheckCount; ++check)
    if (wanted.contains(Check(check)) == has)
      counts_[check] += rest[check];
}

size_t Reasons::count() const noexcept {
  return std::accumulate(counts_.begin(), counts_.end(), size_t{0});
}

bool Reasons::all_pass_by() const noexcept {
  return std::ranges::all_of(kChecks, [&](const Entry& entry) { return !has(entry.check) || entry.passes_by; });
}

std::string Reasons::text() const {
  std::string text;
  for (size_t i = 0; i < list_.size(); ++i)
    text += (i == 0 ? "" : "; ") + list_[i].text;
  if (count() > list_.size())
    text += "; and " + std::to_string(count() - list_.size()) + " more";
  return text;
}

} // namespace stopvisor::patch
