// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/ledger.h"

#include <utility>

namespace stopvisor::patch {

std::vector<Ledger::Entry> Ledger::applied() const {
  const std::lock_guard guard(mutex_);
  std::vector<Entry> list;
  list.reserve(applied_.size());
  for (const auto& [name, entry] : applied_)
    list.push_back(entry);
  return list;
}

Ledger::Entry Ledger::find(const std::string& name) const {
  const std::lock_guard guard(mutex_);
  const auto found = applied_.find(name);
  return found == applied_.end() ? nullptr : found->second;
}

std::vector<Event> Ledger::history() const {
  const std::lock_guard guard(mutex_);
  return history_;
}

Ledger::Place Ledger::make_place(const std::string& name) {
  std::map<std::string, Entry> one;
  one.emplace(name, nullptr);
  return one.extract(one.begin());
}

void Ledger::put(Place place, Entry entry) noexcept {
  place.mapped() = std::move(entry);
  const std::lock_guard guard(mutex_);
  applied_.insert(std::move(place));
}

void Ledger::replace(const Entry& entry) {
  const std::lock_guard guard(mutex_);
  const auto found = applied_.find(entry->manifest.name);
  if (found != applied_.end())
    found->second = entry;
}

void Ledger::remove(const std::string& name) noexcept {
  const std::lock_guard guard(mutex_);
  const auto found = applied_.find(name);
  if (found != applied_.end())
    applied_.erase(found);
}

void Ledger::note(Event event) {
  const std::lock_guard guard(mutex_);
  if (history_.size() == kMaxEvents)
    history_.erase(history_.begin());
  history_.push_back(std::move(event));
}

std::vector<std::string> Ledger::forget_before(uint64_t resets) {
  const std::lock_guard guard(mutex_);
  std::vector<std::string> gone;
  for (const auto& [name, entry] : applied_)
    if (entry->resets != resets)
      gone.push_back(name);
  for (const std::string& name : gone)
    applied_.erase(name);
  return gone;
}

} // namespace stopvisor::patch
