// SPDX-License-Identifier: Apache-2.0
// What the engine does with its ledger: what is applied, confirming it, and taking back what nobody confirms.
#include <algorithm>

#include "tools/patch/engine.h"
#include "tools/patch/ledger_state.h"

namespace stopvisor::patch {
namespace {

using vmm::Error;
using vmm::Status;

constexpr std::chrono::seconds kRevertAgain{1};
constexpr std::chrono::seconds kRevertPatience{5};

} // namespace

std::expected<void, Error> Engine::confirm(const std::string& name, const Author& author) {
  const std::lock_guard guard(changing_);
  forget_resets();
  const Ledger::Entry record = ledger_.find(name);
  if (record == nullptr)
    return std::unexpected(Error{"patch confirm", name, "no such patch is applied", Status::kRefused});
  const auto confirmed = std::make_shared<Record>(*record);
  confirmed->confirm_by.reset();
  confirmed->revert_problem.clear();
  ledger_.replace(confirmed);
  note("confirm", name, author, {});
  expiry_changed();
  return {};
}

std::vector<Ledger::Entry> Engine::list() {
  std::vector<Ledger::Entry> list = ledger_.applied();
  std::erase_if(list, [&](const Ledger::Entry& record) { return record->resets != guest_.resets(); });
  return list;
}

Ledger::Entry Engine::find(const std::string& name) {
  Ledger::Entry record = ledger_.find(name);
  return record != nullptr && record->resets == guest_.resets() ? record : nullptr;
}

vmm::StateSection Engine::save_state() {
  return save_ledger(list(), ledger_.history(), clock_.now());
}

std::expected<void, Error> Engine::restore_state(const vmm::StateSection& section) {
  auto state = restore_ledger(section, clock_.now());
  if (!state)
    return std::unexpected(std::move(state.error()));
  for (Event& event : state->history)
    ledger_.note(std::move(event));
  for (Record& record : state->applied) {
    record.resets = guest_.resets();
    const std::string name = record.manifest.name;
    ledger_.put(Ledger::make_place(name), std::make_shared<Record>(std::move(record)));
  }
  expiry_changed();
  return {};
}

std::optional<SteadyTime> Engine::next_expiry() {
  std::optional<SteadyTime> next;
  for (const Ledger::Entry& record : ledger_.applied())
    if (const auto& by = record->confirm_by; by)
      next = std::min(next.value_or(*by), *by);
  return next;
}

void Engine::expire(SteadyTime now) {
  const std::lock_guard guard(changing_);
  forget_resets();
  for (const Ledger::Entry& record : ledger_.applied()) {
    if (const auto& by = record->confirm_by; !by || *by > now)
      continue;
    const std::string& name = record->manifest.name;
    Options options;
    options.deadline = std::chrono::steady_clock::now() + kRevertPatience;
    const auto done = revert_held("patch revert: not confirmed", name, options);
    if (done) {
      note("revert: not confirmed in time", name, {}, done->cost);
      continue;
    }
    const auto kept = std::make_shared<Record>(*record);
    kept->revert_problem = done.error().error.message();
    kept->confirm_by.reset();
    if (done.error().error.status == Status::kBusy)
      kept->confirm_by = now + kRevertAgain;
    ledger_.replace(kept);
  }
}

} // namespace stopvisor::patch
