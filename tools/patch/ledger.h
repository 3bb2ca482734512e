// SPDX-License-Identifier: Apache-2.0
// The book of what was patched: by whom, when, past which checks, and how to take it back.
//
// It lives as long as the VM's process: the guest's memory is gone with it, and with a reset of the guest.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tools/patch/check.h"
#include "tools/patch/guest.h"
#include "tools/patch/manifest.h"
#include "tools/patch/site.h"

namespace stopvisor::patch {

struct Author {
  uid_t uid = 0;
  pid_t pid = 0;
};

// What one transaction cost.
struct Cost {
  uint32_t attempts = 1;
  int64_t work_ns = 0;           // of our own work under the stop
  std::optional<StopTimes> stop; // nothing where the VM was held by others as well
};

struct Record {
  Manifest manifest;
  Author author;
  std::chrono::system_clock::time_point at;
  std::vector<Check> forced;
  std::vector<Reason> overruled; // what the forced checks said
  Cost cost;
  std::vector<AppliedSite> sites;
  uint64_t resets = 0;                  // of the guest, when it was applied
  std::optional<SteadyTime> confirm_by; // it is taken back then
  std::string revert_problem;           // why it could not be
};

// Something that is over.
struct Event {
  std::string what; // "apply", "revert", "replace", "confirm", "reset", "revert: not confirmed"
  std::string patch;
  Author author;
  std::chrono::system_clock::time_point at;
  Cost cost;
};

// CONTEXT: any thread; the lock is a leaf.
class Ledger {
public:
  using Entry = std::shared_ptr<const Record>;

  // In the order of their names.
  [[nodiscard]] std::vector<Entry> applied() const;
  [[nodiscard]] Entry find(const std::string& name) const; // null where there is none
  [[nodiscard]] std::vector<Event> history() const;        // oldest first, the last kMaxEvents

  // What is applied from now on. Allocates nothing where `place` has come from make_place().
  using Place = std::map<std::string, Entry>::node_type;
  [[nodiscard]] static Place make_place(const std::string& name);
  void put(Place place, Entry entry) noexcept;
  void replace(const Entry& entry); // of the same name
  void remove(const std::string& name) noexcept;
  void note(Event event);
  // Forgets what was applied before the guest's last reset. RETURNS: the names.
  std::vector<std::string> forget_before(uint64_t resets);

  static constexpr size_t kMaxEvents = 256;

private:
  mutable std::mutex mutex_;
  std::map<std::string, Entry> applied_;
  std::vector<Event> history_;
};

} // namespace stopvisor::patch
