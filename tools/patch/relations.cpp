// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/relations.h"

#include <algorithm>

namespace stopvisor::patch {
namespace {

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

bool is_replaced_by(const Manifest& manifest, const Ledger::Entry& old) {
  return old->manifest.name == manifest.name || has(manifest.replaces, old->manifest.name);
}

} // namespace

bool would_replace(const Manifest& manifest, const std::vector<Ledger::Entry>& applied) {
  return std::ranges::any_of(applied, [&](const Ledger::Entry& old) { return is_replaced_by(manifest, old); });
}

Related relate(const Manifest& manifest, const std::vector<Ledger::Entry>& applied, bool replaces) {
  Related related;
  const auto refuse = [&](std::string text) { related.reasons.add(Check::kRelations, std::move(text)); };
  for (const Ledger::Entry& old : applied)
    (is_replaced_by(manifest, old) ? related.replaced : related.stays).push_back(old);
  if (!replaces)
    for (const Ledger::Entry& old : related.replaced)
      refuse(old->manifest.name == manifest.name
                 ? "it is applied already ('patch replace' puts another version in its place)"
                 : "it replaces patch " + old->manifest.name + ", which is applied ('patch replace' does that)");
  if (replaces && related.replaced.empty())
    refuse("none of the patches it replaces is applied");
  for (const std::string& needed : manifest.depends)
    if (std::ranges::none_of(related.stays, [&](const auto& one) { return one->manifest.name == needed; }))
      refuse("it depends on patch " + needed + ", which is not applied");
  for (const Ledger::Entry& other : related.stays) {
    if (has(manifest.conflicts, other->manifest.name) || has(other->manifest.conflicts, manifest.name))
      refuse("it conflicts with patch " + other->manifest.name + ", which is applied");
    for (const Ledger::Entry& old : related.replaced)
      if (has(other->manifest.depends, old->manifest.name) && old->manifest.name != manifest.name)
        refuse("patch " + other->manifest.name + " depends on " + old->manifest.name + ", which it would replace");
  }
  return related;
}

} // namespace stopvisor::patch
