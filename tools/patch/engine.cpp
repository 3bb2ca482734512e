// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/engine.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "tools/patch/relations.h"

namespace stopvisor::patch {
namespace {

using vmm::Error;
using vmm::Status;
using End = Transaction::End;

constexpr int kStaleTries = 3; // a guest that resets itself all the time is not waited for
constexpr std::chrono::milliseconds kFirstBackOff{1};
constexpr std::chrono::milliseconds kLongestBackOff{100};

Refusal refusal(const char* operation, const std::string& patch, const std::string& reason, Status status,
                std::vector<Reason> reasons = {}) {
  return {Error{operation, patch, reason, status}, std::move(reasons), {}};
}

std::string what_failed(const Reasons& reasons) {
  return reasons.empty() ? "the host was short of memory" : reasons.text();
}

// Of a transaction that did not do what was asked.
Refusal refusal_of(const char* operation, const std::string& patch, const Transaction& transaction,
                   const Rules& rules) {
  const Reasons& reasons = transaction.reasons();
  switch (transaction.end()) {
  case End::kNone:
  case End::kStale:
    return refusal(operation, patch,
                   std::string("the guest changed whenever it was looked at") +
                       (rules.audit ? "" : "; nothing was written"),
                   Status::kBusy);
  case End::kTooLong:
    return refusal(operation, patch,
                   "the guest would have been held for longer than --max-hold; nothing was written", Status::kBusy);
  case End::kFailed:
    return refusal(operation, patch, "the host is short of memory; nothing was written", Status::kFailed);
  case End::kRestored:
    return refusal(operation, patch, what_failed(reasons) + "; everything is as it was", Status::kRefused,
                   reasons.list());
  case End::kMixed:
    return refusal(operation, patch,
                   what_failed(reasons) + "; " + std::to_string(transaction.lost()) +
                       " sites could not be restored: THE GUEST IS PARTLY CHANGED",
                   Status::kFailed, reasons.list());
  case End::kRefused:
  case End::kChecked:
  case End::kCommitted:
    break;
  }
  Status status = reasons.all_pass_by() ? Status::kBusy : Status::kRefused;
  if (reasons.has(Check::kDrift))
    status = Status::kDrift;
  // An audit is not there to write.
  return refusal(operation, patch, reasons.text() + (rules.audit ? "" : "; nothing was written"), status,
                 reasons.list());
}

std::vector<SiteChange> changes_of(const Preparation& prepared) {
  std::vector<SiteChange> list;
  for (const Site& site : prepared.sites)
    if (site.is_there() && site.location)
      list.push_back({site.name, site.kind, site.location->text(), site.found, site.after});
  return list;
}

// CONTEXT: under the stop. Takes the drafts away.
std::vector<AppliedSite> applied_sites(Preparation& prepared) {
  std::vector<AppliedSite> list;
  list.reserve(prepared.sites.size());
  for (Site& site : prepared.sites) {
    if (site.write == nullptr || !site.location)
      continue;
    site.draft.address = site.location->address;
    std::ranges::copy(site.base, site.draft.before.begin());
    std::ranges::copy(site.after, site.draft.after.begin());
    for (const Piece& piece : site.pieces.list)
      site.draft.where.emplace_back(piece.gpa, piece.host.size());
    list.push_back(std::move(site.draft));
  }
  return list;
}

Rules rules_of(const Options& options, bool commit) {
  return {.commit = commit,
          .audit = false,
          .stacks = options.stacks,
          .forced = options.forced,
          .max_hold = options.max_hold};
}

Error busy(const char* operation, const std::string& patch) {
  return {operation, patch, "another change of patches is being made", Status::kBusy};
}

} // namespace

void Clock::wait(std::chrono::nanoseconds duration) {
  std::this_thread::sleep_for(duration); // a back-off, bounded by the request's deadline: nobody can tell us
}

std::unique_lock<std::timed_mutex> Engine::begin(const Options& options) {
  std::unique_lock lock(changing_, options.deadline);
  if (lock)
    forget_resets();
  return lock;
}

void Engine::forget_resets() {
  for (const std::string& name : ledger_.forget_before(guest_.resets()))
    note("gone with a reset of the guest", name, {}, {});
}

void Engine::note(const char* what, const std::string& patch, const Author& author, const Cost& cost) {
  ledger_.note({what, patch, author, std::chrono::system_clock::now(), cost});
}

Result Engine::transact(const char* operation, const std::string& patch, const Change& change,
                        const Options& options, Rules rules, stopper::FunctionRef<void(Preparation&)> log) {
  Guest::Wanted wanted{operation, options.deadline, needs_kernel(change), options.symbols};
  const RegisterExpectation expectation(guest_); // the vCPUs go back from the first stop knowing it
  uint32_t retries_left = options.retries;
  int stale_left = kStaleTries;
  std::chrono::nanoseconds back_off = kFirstBackOff;
  for (uint32_t attempt = 1;; ++attempt) {
    auto prepared = prepare(guest_, wanted, change);
    if (!prepared)
      return std::unexpected(Refusal{prepared.error(), {}, {}});
    const auto write_log = [&] { log(*prepared); };
    Transaction transaction(guest_, *prepared, change, rules, write_log, hooks_);
    if (hooks_ != nullptr)
      hooks_->at(Step::kPrepared);
    const auto body = [&](const Guest::Moment& moment) -> std::expected<void, Error> {
      transaction.run(moment);
      return {};
    };
    if (auto held = guest_.under_stop(wanted, body); !held)
      return std::unexpected(Refusal{held.error(), {}, {}});
    const Cost cost{attempt, transaction.work().count(), guest_.times_of(transaction.sequence())};
    const End end = transaction.end();
    if (end == End::kCommitted || end == End::kChecked)
      return Outcome{patch, {}, changes_of(*prepared), transaction.overruled().list(), cost};
    const bool stale = end == End::kStale && --stale_left > 0;
    const bool passes = end == End::kTooLong || (end == End::kRefused && transaction.reasons().all_pass_by());
    if (!stale && (!passes || retries_left == 0 || clock_.now() + back_off >= options.deadline)) {
      Refusal refused = refusal_of(operation, patch, transaction, rules);
      refused.cost = cost;
      return std::unexpected(std::move(refused));
    }
    if (stale)
      continue;
    --retries_left;
    clock_.wait(back_off);
    back_off = std::min<std::chrono::nanoseconds>(back_off * 2, kLongestBackOff);
  }
}

Result Engine::make(const Manifest& manifest, const Options& options, const char* operation, bool replaces,
                    bool commit) {
  const auto lock = begin(options);
  if (!lock)
    return std::unexpected(Refusal{busy(operation, manifest.name), {}, {}});
  Related related = relate(manifest, ledger_.applied(), replaces);
  if (!related.reasons.empty())
    return std::unexpected(refusal(operation, manifest.name, related.reasons.text() + "; nothing was written",
                                   Status::kRefused, related.reasons.list()));
  const auto record = std::make_shared<Record>();
  record->manifest = manifest;
  record->author = options.author;
  record->forced = options.forced.list();
  Ledger::Place place = Ledger::make_place(manifest.name);
  const Change change{std::move(related.replaced), &record->manifest, std::move(related.stays)};
  const auto log = [&](Preparation& prepared) {
    record->sites = applied_sites(prepared);
    record->resets = prepared.resets;
  };
  auto done = transact(operation, manifest.name, change, options, rules_of(options, commit), log);
  if (!done)
    return done;
  for (const Ledger::Entry& old : change.revert)
    done->replaced.push_back(old->manifest.name);
  if (!commit)
    return done;
  record->at = std::chrono::system_clock::now();
  record->cost = done->cost;
  record->overruled = done->overruled;
  if (options.confirm_within)
    record->confirm_by = clock_.now() + *options.confirm_within;
  for (const Ledger::Entry& old : change.revert)
    ledger_.remove(old->manifest.name);
  ledger_.put(std::move(place), record);
  note(replaces ? "replace" : "apply", manifest.name, options.author, done->cost);
  expiry_changed();
  return done;
}

Result Engine::check(const Manifest& manifest, const Options& options) {
  const bool replaces = would_replace(manifest, list());
  return make(manifest, options, "patch check", replaces, false);
}

Result Engine::apply(const Manifest& manifest, const Options& options) {
  return make(manifest, options, "patch apply", false, true);
}

Result Engine::replace(const Manifest& manifest, const Options& options) {
  return make(manifest, options, "patch replace", true, true);
}

Result Engine::revert(const std::string& name, const Options& options) {
  const auto lock = begin(options);
  if (!lock)
    return std::unexpected(Refusal{busy("patch revert", name), {}, {}});
  auto done = revert_held("patch revert", name, options);
  if (done)
    note("revert", name, options.author, done->cost);
  expiry_changed();
  return done;
}

Result Engine::revert_held(const char* operation, const std::string& name, const Options& options) {
  const Ledger::Entry record = ledger_.find(name);
  if (record == nullptr)
    return std::unexpected(refusal(operation, name, "no such patch is applied", Status::kRefused));
  Change change{{record}, nullptr, {}};
  for (const Ledger::Entry& other : ledger_.applied()) {
    if (std::ranges::find(other->manifest.depends, name) != other->manifest.depends.end())
      return std::unexpected(refusal(operation, name, "patch " + other->manifest.name + " depends on it",
                                     Status::kRefused,
                                     {{Check::kRelations, "patch " + other->manifest.name + " depends on it"}}));
    if (other != record)
      change.stays.push_back(other);
  }
  auto done = transact(operation, name, change, options, rules_of(options, true), [](Preparation&) {});
  if (done)
    ledger_.remove(name);
  return done;
}

Result Engine::verify(const std::string& name, const Options& options) {
  const auto lock = begin(options);
  if (!lock)
    return std::unexpected(Refusal{busy("patch verify", name), {}, {}});
  Change change;
  change.of_all = name.empty();
  for (const Ledger::Entry& record : ledger_.applied())
    if (name.empty() || record->manifest.name == name)
      change.revert.push_back(record);
  if (change.revert.empty() && !name.empty())
    return std::unexpected(refusal("patch verify", name, "no such patch is applied", Status::kRefused));
  Rules rules;
  rules.commit = false;
  rules.audit = true;
  return transact("patch verify", name, change, options, rules, [](Preparation&) {});
}

} // namespace stopvisor::patch
