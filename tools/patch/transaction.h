// SPDX-License-Identifier: Apache-2.0
// What happens under the stop: all checks, then the undo log, all writes, the reading back, the conditions; or,
// where one of these fails, everything as it was.
#pragma once

#include <chrono>
#include <optional>

#include "tools/patch/preparation.h"
#include "tools/patch/vcpu_checks.h"

namespace stopvisor::patch {

// Where a test can step in.
enum class Step {
  kPrepared, // the guest runs; next is the stop
  kHeld,     // nothing was looked at yet
  kChecked,  // every check was made; next is the first write
  kWritten,  // every write was made, none was read back
  kReadBack, // what was read back was right; next are the conditions to ensure
};
class Hooks {
public:
  virtual ~Hooks() = default;
  virtual void at(Step step) = 0;
};

struct Rules {
  bool commit = true; // false: everything but the write
  bool audit = false; // bytes are compared alone, wherever the vCPUs are
  bool stacks = false;
  CheckSet forced;
  std::optional<std::chrono::nanoseconds> max_hold; // from everybody being held to the first write
};

class Transaction {
public:
  enum class End {
    kNone,
    kStale, // what was prepared is of no more use: the guest was reset, is another kernel now, or changed that code
    kRefused,   // by checks, nothing was written
    kTooLong,   // max_hold had passed, nothing was written
    kChecked,   // nothing speaks against it, nothing was written as none was asked for
    kCommitted, // everything is written
    kRestored,  // a write, its reading back or a condition failed, and everything is as it was
    kMixed,     // so it did, and lost() sites could not be restored
    kFailed,    // the host was short of memory, nothing was written
  };

  // `log` is called before the first write, with all that a revert needs in the sites: where it throws, nothing is
  // written. Makes its rooms. All must outlive the object. CONTEXT: before the stop.
  Transaction(Guest& guest, Preparation& prepared, const Change& change, const Rules& rules,
              stopper::FunctionRef<void()> log, Hooks* hooks);

  // CONTEXT: under a stop; once.
  void run(const Guest::Moment& moment) noexcept;

  [[nodiscard]] End end() const noexcept { return end_; }
  // What speaks against it, and was not forced; what was forced; what went wrong in the commit.
  [[nodiscard]] const Reasons& reasons() const noexcept { return reasons_; }
  [[nodiscard]] const Reasons& overruled() const noexcept { return overruled_; }
  [[nodiscard]] std::chrono::nanoseconds work() const noexcept { return work_; }
  [[nodiscard]] uint64_t sequence() const noexcept { return sequence_; }
  [[nodiscard]] size_t lost() const noexcept { return lost_; }

private:
  void run_under(const Guest::Moment& moment);
  void find(Spaces& spaces);
  void compare();
  void overlay();
  void compare_expected(Site& site);
  void check_rights(const Site& site);
  [[nodiscard]] bool is_breakpoint_alone(const Site& site, const Bytes& expected, const Bytes& mask) const;
  [[nodiscard]] bool is_as_decoded(const Site& site);
  void check_breakpoints(const Site& site);
  void check_functions(Spaces& spaces);
  void check_overlaps();
  void check_conditions(Check check, const std::vector<Predicate>& predicates, Spaces& spaces, Reasons& reasons);
  void commit(Spaces& spaces);
  [[nodiscard]] bool write(const Site& site, const Bytes& bytes) noexcept;
  [[nodiscard]] bool reads(const Site& site, const Bytes& bytes) noexcept;
  void restore(size_t written) noexcept;
  void reach(Step step) {
    if (hooks_ != nullptr)
      hooks_->at(step);
  }
  // Where what is said goes: where the check is forced, it does not speak against the change.
  [[nodiscard]] Reasons& list_for(Check check) noexcept {
    return rules_.forced.contains(check) ? overruled_ : reasons_;
  }
  void add(Check check, std::string text) { list_for(check).add(check, std::move(text)); }
  void add(const Reasons& reasons) {
    reasons_.add(reasons, rules_.forced, false);
    overruled_.add(reasons, rules_.forced, true);
  }
  [[nodiscard]] bool held_too_long() const;

  Guest& guest_;
  Preparation& prepared_;
  const Change& change_;
  const Rules& rules_;
  const stopper::FunctionRef<void()> log_;
  Hooks* const hooks_;
  PieceFinder finder_; // what it keeps is true for one stop
  Pieces function_pieces_;
  VcpuChecks vcpu_checks_;
  Bytes room_; // as long as the longest site or window
  struct Range {
    uint64_t begin = 0, end = 0;
    const Site* site = nullptr;
  };
  std::vector<Range> ranges_; // of what is applied

  End end_ = End::kNone;
  size_t written_ = 0; // how many sites were written, or begun to be
  size_t lost_ = 0;
  bool stale_ = false; // the code is not what was decoded
  Reasons reasons_;
  Reasons overruled_;
  SteadyTime began_;
  std::chrono::nanoseconds work_{0};
  uint64_t sequence_ = 0;
};

} // namespace stopvisor::patch
