// SPDX-License-Identifier: Apache-2.0
// Who runs next: at random from a seed, or every possibility in turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/sched/object.h"

namespace stopvisor::sched {

inline constexpr unsigned kNobody = 31;

// splitmix64: good enough, and the same everywhere.
class Random {
public:
  explicit Random(uint64_t seed) noexcept : state_(seed) {}
  uint64_t next() noexcept;
  // 0 .. bound - 1; bound > 0
  uint32_t below(uint32_t bound) noexcept { return static_cast<uint32_t>((next() >> 32) * bound >> 32); }
  bool one_in(uint32_t count) noexcept { return below(count) == 0; }

private:
  uint64_t state_;
};

// One moment at which somebody has to be chosen.
struct Moment {
  uint32_t ready;       // a bit for each fiber that could take a step; bit kClock: time could pass
  unsigned current;     // who took the last step; kNobody where it cannot go on or yields
  uint64_t fingerprint; // of the state
};

class Strategy {
public:
  virtual ~Strategy() = default;
  // RETURNS: one of moment.ready, or kNobody to give the schedule up.
  virtual unsigned pick(const Moment& moment) noexcept = 0;
  // A coin of the world rather than of the scheduler: 0 .. bound - 1, 0 being the ordinary case.
  virtual uint32_t toss(uint32_t bound) noexcept = 0;
  // The step that is being taken touches `object`.
  virtual void touched(const Object& /*object*/, Access /*access*/) noexcept {}
};

// Each seed picks one of several tempers: uniform, sticky, or with priorities that change at a few random
// steps (PCT: Burckhardt et al., "A randomized scheduler with probabilistic guarantees of finding bugs").
class RandomStrategy final : public Strategy {
public:
  explicit RandomStrategy(uint64_t seed) noexcept;
  unsigned pick(const Moment& moment) noexcept override;
  uint32_t toss(uint32_t bound) noexcept override { return random_.below(bound); }

private:
  unsigned by_priority(uint32_t ready) noexcept;

  Random random_;
  uint32_t stickiness_ = 0; // of 8: how often the current one goes on
  bool priorities_ = false;
  uint32_t steps_ = 0;
  uint32_t changes_[4] = {};
  uint32_t priority_[32] = {};
  uint32_t lowest_ = 100;
};

// Depth-first search through all schedules with at most `bound` preemptions: switches away from a fiber that
// could have gone on. Switches where it could not are free, and all are tried.
//
// Two things keep it short. A state that was reached before with as many preemptions left is not entered again.
// And whoever is preempted before a step sleeps until somebody has touched what that step touches: else it might as
// well have been preempted after the step, for the same price, which is tried anyway.
class ExhaustiveStrategy final : public Strategy {
public:
  explicit ExhaustiveStrategy(unsigned bound);
  ~ExhaustiveStrategy() override;
  ExhaustiveStrategy(const ExhaustiveStrategy&) = delete;
  ExhaustiveStrategy& operator=(const ExhaustiveStrategy&) = delete;

  unsigned pick(const Moment& moment) noexcept override;
  uint32_t toss(uint32_t /*bound*/) noexcept override { return 0; }
  void touched(const Object& object, Access access) noexcept override;

  // Ends a schedule. RETURNS: false where there is no further one.
  bool next_schedule() noexcept;
  // "2:17=3,40=0": the bound, then each decision that was not the usual one.
  [[nodiscard]] std::string trace() const;
  // Takes the decisions of such a trace; nothing else is explored then. RETURNS: false where it is none.
  bool replay(const std::string& trace);
  [[nodiscard]] uint64_t states() const noexcept { return seen_count_; }

private:
  // What a step touches: one bit an object. Two objects may share a bit, which only makes steps look dependent.
  struct Footprint {
    uint64_t read = 0;
    uint64_t written = 0;
  };
  struct Node {
    Footprint going_on; // of the step that the running fiber takes if it is not preempted
    uint32_t untried;
    uint8_t chosen;
    uint8_t usual; // who would be chosen if nobody had asked
    uint8_t spent; // preemptions before this decision
    bool free;
  };
  static constexpr size_t kNone = SIZE_MAX;
  // A state that was reached: with how many preemptions at least, by who ran last. kUnseen: never so.
  static constexpr unsigned kFree = 7; // the one who ran last cannot go on: every choice is free
  static constexpr uint8_t kUnseen = 0xff;
  struct Seen {
    uint64_t fingerprint; // 0: an empty place
    uint8_t spent[8];
  };

  [[nodiscard]] bool seen_before(const Moment& moment) noexcept;
  void grow() noexcept;

  unsigned bound_;
  unsigned spent_ = 0;
  size_t depth_ = 0;
  bool replaying_ = false;
  uint32_t asleep_ = 0;
  Footprint wakes_[32];      // the next step of those who sleep
  size_t recording_ = kNone; // the node whose `going_on` is being taken
  std::vector<Node> nodes_;
  std::vector<std::pair<size_t, uint8_t>> wanted_;
  Seen* seen_ = nullptr; // open addressing, outside the arena of the schedules
  size_t seen_size_ = 0;
  size_t seen_count_ = 0;
};

} // namespace stopvisor::sched
