// SPDX-License-Identifier: Apache-2.0
// Which side of a migration may run the guest: the rules of docs/adr/0024-hand-over.md as two state machines.
//
// They know no link, no VM and no clock: whoever has those tells them what happened, and does what they answer. So
// the code that decides is what the tests explore with every loss and every death (tests/unit/migrate/), the way
// tests/model/handover.pml does on paper.
#pragma once

#include <cstdint>
#include <optional>

namespace stopvisor::migrate {

enum class Word : uint8_t {
  kPrepare,   // source: the guest is held, you have everything
  kCommit,    // source: the right to run is yours
  kAbandon,   // source: do not start, and tell me
  kPrepared,  // destination: it is whole, I could run it, I have not started
  kRunning,   // destination: I run it
  kAbandoned, // destination: I have not started, and never will
};

// What to do now, in this order.
struct Turn {
  bool run_guest = false;    // it goes on here; never true again after drop_guest
  bool drop_guest = false;   // it will not run here any more: let go of it, and of its disks
  std::optional<Word> say{}; // best effort: a word that is lost is part of the rules
};

// The source, from the moment it holds the guest:
//
//   kWaits ---- prepared ----> kDecided ---- running ------> kGone
//     |                         |    ^  \--- abandoned ----> kRuns
//     |               link breaks    dialled again
//     |                         v    |
//     |                        kDoubts ---- operator ------> kRuns or kGone
//     `-- anything else ------------------------------------> kRuns
//
// CONTEXT: one thread at a time.
class SourceSide {
public:
  enum class State : uint8_t { kWaits, kDecided, kDoubts, kGone, kRuns };

  [[nodiscard]] State state() const noexcept { return state_; }
  // The first thing to be said. The guest is held by now.
  [[nodiscard]] static Turn begin() noexcept { return {.say = Word::kPrepare}; }
  [[nodiscard]] Turn hear(Word word) noexcept;
  // The link is gone, or said what cannot be.
  [[nodiscard]] Turn lose_link() noexcept;
  // A limit of time, a cancelled job, a disk that cannot be let go of: back to the guest, where that is still ours
  // to say.
  [[nodiscard]] Turn give_up() noexcept;
  // The destination was dialled again. `go_on`: whether it is to start the guest if it has not.
  [[nodiscard]] Turn dialled_again(bool go_on) noexcept;
  // An operator knows that the destination has ended (`here`), or that it runs the guest.
  [[nodiscard]] Turn told(bool here) noexcept;

private:
  Turn run() noexcept;
  Turn drop() noexcept;
  State state_ = State::kWaits;
};

// The destination:
//
//   kLoads --- prepare, whole ---> kReady ---- commit ----> kStarted
//     |                             |    link breaks          ^
//     |                             v                         | commit, operator
//     |                           kOrphaned ------------------'
//     `--- anything else, abandon, its limit of time, from each of these three ---> kGaveUp
//
// kStarted and kGaveUp are for ever, and said whenever the source asks.
//
// CONTEXT: one thread at a time.
class DestinationSide {
public:
  enum class State : uint8_t { kLoads, kReady, kOrphaned, kStarted, kGaveUp };

  [[nodiscard]] State state() const noexcept { return state_; }
  // `whole`: of kPrepare, whether everything came and was checked, and this host can run it.
  [[nodiscard]] Turn hear(Word word, bool whole = false) noexcept;
  [[nodiscard]] Turn lose_link() noexcept;
  [[nodiscard]] Turn give_up() noexcept;
  // An operator knows that the source has ended, or will not run the guest.
  [[nodiscard]] Turn told_to_start() noexcept;

private:
  Turn start() noexcept;
  State state_ = State::kLoads;
};

} // namespace stopvisor::migrate
