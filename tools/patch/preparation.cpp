// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/preparation.h"

#include <algorithm>
#include <set>

#include "tools/patch/windows.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

Site site_of(const Write& write, size_t number) {
  Site site;
  site.name = "site " + std::to_string(number) + " (" + to_string(write.at) + ")";
  site.place = write.at;
  site.kind = write.kind;
  site.size = write.size();
  site.number = number;
  site.write = &write;
  return site;
}

Site site_of(const AppliedSite& applied, const std::string& patch, bool several) {
  Site site;
  site.name = (several ? "patch " + patch + ", site " : "site ") + std::to_string(applied.number) + " (" +
              to_string(applied.place) + ")";
  site.place = applied.place;
  site.kind = applied.kind;
  site.size = applied.after.size();
  site.number = applied.number;
  site.applied = &applied;
  site.window = applied.window;
  return site;
}

// Once its window is known.
void draft_record(Site& site) {
  site.draft = {site.number, site.place, site.kind, 0, site.window, {}, Bytes(site.size), Bytes(site.size)};
  site.draft.where.reserve(2);
}

void make_room(Site& site) {
  site.found.resize(site.size);
  site.base.resize(site.size);
  site.after.resize(site.size);
  site.pieces.list.reserve(2);
  site.window_pieces.list.reserve(2);
}

// Those whose page tables the change goes by.
std::set<uint64_t> wanted_vcpus(const Change& change) {
  std::set<uint64_t> cpus{0};
  const auto add = [&](const Place& place) {
    if (place.kind == Place::Kind::kVcpu)
      cpus.insert(place.of);
  };
  if (change.apply != nullptr)
    for (const Write& write : change.apply->writes) {
      add(write.at);
      if (write.function)
        add(write.function->at);
    }
  return cpus;
}

void check_target(const Target& target, const vmm::LinuxKernel* kernel, Reasons& reasons) {
  if (target.kind == Target::Kind::kAny || kernel == nullptr)
    return;
  const vmm::KernelIdentity& identity = kernel->identity();
  if (target.kind == Target::Kind::kBuildId && identity.build_id != target.build_id)
    reasons.add(Check::kTarget, "the patch is for another build: the guest's build ID is not the target's");
  if (target.kind == Target::Kind::kBanner && identity.banner != target.banner)
    reasons.add(Check::kTarget, "the patch is for another kernel: the guest says \"" + identity.banner + "\"");
}

std::vector<Preparation::Foreign> foreign_of(const std::vector<Ledger::Entry>& records) {
  std::vector<Preparation::Foreign> list;
  for (const Ledger::Entry& record : records)
    for (const AppliedSite& site : record->sites)
      for (const auto& [gpa, length] : site.where)
        list.push_back({gpa.value, gpa.value + length, record->manifest.name});
  std::ranges::sort(list, {}, &Preparation::Foreign::begin);
  return list;
}

} // namespace

bool Preparation::writes_code() const noexcept {
  return std::ranges::any_of(sites, [](const Site& site) { return site.kind == SiteKind::kCode; });
}

bool needs_kernel(const Change& change) {
  const auto of = [](const auto& entry) { return needs_kernel(entry); };
  for (const Ledger::Entry& record : change.revert)
    if (std::ranges::any_of(record->sites, of, &AppliedSite::place))
      return true;
  if (change.apply == nullptr)
    return false;
  const Manifest& manifest = *change.apply;
  return manifest.target.kind != Target::Kind::kAny || std::ranges::any_of(manifest.writes, of, &Write::at) ||
         std::ranges::any_of(manifest.require, of, &Predicate::at) ||
         std::ranges::any_of(manifest.ensure, of, &Predicate::at);
}

std::expected<Preparation, vmm::Error> prepare(Guest& guest, Guest::Wanted wanted, const Change& change) {
  Preparation prepared;
  wanted.kernel = needs_kernel(change);
  std::optional<Spaces> spaces;
  const auto look = [&](const Guest::Moment& moment) -> std::expected<void, vmm::Error> {
    prepared.kernel = moment.kernel;
    prepared.resets = guest.resets();
    spaces.emplace(guest, moment.kernel.get());
    spaces->read(wanted_vcpus(change));
    return {};
  };
  if (auto held = guest.under_stop(wanted, look); !held)
    return std::unexpected(held.error());

  const bool several = change.apply != nullptr || change.revert.size() > 1 || change.of_all;
  for (const Ledger::Entry& record : change.revert)
    for (const AppliedSite& applied : record->sites)
      prepared.sites.push_back(site_of(applied, record->manifest.name, several));
  if (change.apply != nullptr) {
    for (const Write& write : change.apply->writes)
      prepared.sites.push_back(site_of(write, size_t(&write - change.apply->writes.data()) + 1));
    check_target(change.apply->target, prepared.kernel.get(), prepared.reasons);
  }
  for (Site& site : prepared.sites)
    make_room(site);
  if (spaces) // look() has run
    find_windows(prepared, *spaces, guest.memory());
  for (Site& site : prepared.sites)
    if (site.write != nullptr)
      draft_record(site);
  prepared.foreign = foreign_of(change.stays);
  return prepared;
}

} // namespace stopvisor::patch
