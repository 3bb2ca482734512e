// SPDX-License-Identifier: Apache-2.0
// Live patching of one guest: check, apply, revert, replace, verify, confirm.
//
// One change at a time. Whatever fails, the guest has either the old bytes or the new, never a mixture, and the
// answer says which.
#pragma once

#include <expected>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tools/patch/ledger.h"
#include "tools/patch/transaction.h"
#include "vmm/state/section.h"

namespace stopvisor::patch {

// Time as the engine sees it; a test's own stands still.
class Clock {
public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual SteadyTime now() const { return std::chrono::steady_clock::now(); }
  // Between two attempts.
  virtual void wait(std::chrono::nanoseconds duration);
};

struct Options {
  SteadyTime deadline; // for all attempts together
  uint32_t retries = 0;
  bool stacks = false;
  CheckSet forced;
  std::optional<std::chrono::nanoseconds> max_hold;
  std::optional<std::chrono::milliseconds> confirm_within;
  std::string symbols;
  Author author;
};

struct SiteChange {
  std::string name;
  SiteKind kind = SiteKind::kData;
  std::string address; // it was looked up to
  Bytes before, after;
};

struct Outcome {
  std::string patch;
  std::vector<std::string> replaced;
  std::vector<SiteChange> sites;
  std::vector<Reason> overruled;
  Cost cost;
};

struct Refusal {
  vmm::Error error; // its status says what became of the guest
  std::vector<Reason> reasons;
  Cost cost;
};

using Result = std::expected<Outcome, Refusal>;

class Engine {
public:
  // All must outlive the engine; hooks may be null.
  Engine(Guest& guest, Clock& clock, Hooks* hooks = nullptr) : guest_(guest), clock_(clock), hooks_(hooks) {}

  // CONTEXT, all: any thread; those with options block until their deadline at most.
  // RETURNS, these: kRefused where a check says no, kBusy where what says no passes by itself, or the deadline or
  // max_hold did; kDrift where the guest has other bytes than the patch wrote (revert, replace): nothing was
  // written then. kFailed where a write failed: the error says what is there.

  // Everything but the write, under a real stop.
  [[nodiscard]] Result check(const Manifest& manifest, const Options& options);
  [[nodiscard]] Result apply(const Manifest& manifest, const Options& options);
  // In place of the applied patches of that name or named in its `replaces`, in one commit.
  [[nodiscard]] Result replace(const Manifest& manifest, const Options& options);
  [[nodiscard]] Result revert(const std::string& name, const Options& options);
  // Compares what all patches wrote (or the one of that name) with what is there. RETURNS: kDrift where it differs.
  [[nodiscard]] Result verify(const std::string& name, const Options& options);
  // The patch stays. RETURNS: kRefused where there is none of that name.
  [[nodiscard]] std::expected<void, vmm::Error> confirm(const std::string& name, const Author& author);

  // What is applied, without what the guest's resets undid.
  [[nodiscard]] std::vector<Ledger::Entry> list();
  [[nodiscard]] Ledger::Entry find(const std::string& name);
  [[nodiscard]] const Ledger& ledger() const noexcept { return ledger_; }

  // What is applied and the history, for a snapshot. CONTEXT: under a stop, so that it is that of the memory.
  [[nodiscard]] vmm::StateSection save_state();
  // Takes them up again. CONTEXT: before the first change, and before the guest runs; its memory is that of the
  // snapshot. RETURNS: kRefused where the section is not one that was saved; nothing is applied then.
  [[nodiscard]] std::expected<void, vmm::Error> restore_state(const vmm::StateSection& section);

  // When the next patch is to be taken back for want of a confirmation.
  [[nodiscard]] std::optional<SteadyTime> next_expiry();
  // Takes back what was not confirmed by `now`. One that cannot be, for a reason that passes by, is tried again a
  // second later; else the ledger says why it stays.
  void expire(SteadyTime now);
  // Is called, from any thread, whenever next_expiry() may have changed. CONTEXT: before the first change.
  void tell_expiry_to(std::function<void()> listener) { listener_ = std::move(listener); }

private:
  [[nodiscard]] std::unique_lock<std::timed_mutex> begin(const Options& options);
  [[nodiscard]] Result make(const Manifest& manifest, const Options& options, const char* operation, bool replaces,
                            bool commit);
  [[nodiscard]] Result revert_held(const char* operation, const std::string& name, const Options& options);
  [[nodiscard]] Result transact(const char* operation, const std::string& patch, const Change& change,
                                const Options& options, Rules rules, stopper::FunctionRef<void(Preparation&)> log);
  void forget_resets();
  void note(const char* what, const std::string& patch, const Author& author, const Cost& cost);
  void expiry_changed() const {
    if (listener_)
      listener_();
  }

  Guest& guest_;
  Clock& clock_;
  Hooks* const hooks_;
  std::timed_mutex changing_; // one change at a time; before the ledger's
  Ledger ledger_;
  std::function<void()> listener_;
};

} // namespace stopvisor::patch
