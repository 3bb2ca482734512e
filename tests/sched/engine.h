// SPDX-License-Identifier: Apache-2.0
// The deterministic scheduler: runs fibers one step at a time, in an order that a Strategy chooses.
//
// A step is one atomic operation, wait, wake-up, kick or guest access. Before each of them the fiber asks the
// strategy who goes next. So every interleaving of those steps can be produced, and produced again.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "stopper/time.h"
#include "tests/sched/fiber.h"
#include "tests/sched/object.h"
#include "tests/sched/strategy.h"

namespace stopvisor::sched {

using stopper::kForever;
using stopper::TimePoint;
using Place = std::source_location;

// What became of one schedule.
enum class Verdict { kPassed, kFailed, kPruned };

class Engine {
public:
  static constexpr unsigned kMaxFibers = 30;
  static constexpr unsigned kClock = 30; // the fiber number that stands for "time passes"

  static Engine& get() noexcept;

  // ---- one schedule; CONTEXT: outside fibers ---------------------------------------------------------------

  // Forgets the last schedule. `tracing` prints each step.
  void begin(Strategy& strategy, bool tracing) noexcept;
  // Runs until all fibers have ended, or something is wrong, or the strategy gives up.
  Verdict run() noexcept;
  // What is wrong; valid after kFailed.
  [[nodiscard]] const std::string& violation() const noexcept { return violation_; }
  [[nodiscard]] uint64_t steps() const noexcept { return steps_; }

  // ---- for the world under test; CONTEXT: fibers, and set-up --------------------------------------------------

  // RETURNS: the new fiber's number.
  unsigned spawn(const char* name, std::function<void()> body);
  [[nodiscard]] bool active() const noexcept { return current_ != kNobody; }
  [[nodiscard]] unsigned current() const noexcept { return current_; }

  // A step on `object` begins: others may take theirs first.
  void step(Object& object, Access access, const char* what, Place where = Place::current()) noexcept;
  // The same step touches a further object.
  void also(Object& object, Access access) noexcept;
  // After a step, for the trace.
  void note(const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));
  [[nodiscard]] bool tracing() const noexcept { return tracing_; }

  // Something is wrong: the schedule ends here.
  [[noreturn]] void fail(const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

  // Blocks until unblock() or `deadline`; no step by itself. `address` names what it waits for.
  void block(const void* address, TimePoint deadline, const char* what, Place where) noexcept;
  // Makes fibers blocked on `address` ready again: the one that waits longest, or all.
  void unblock(const void* address, bool all) noexcept;
  void unblock_fiber(unsigned fiber) noexcept;
  // Lets somebody else go first, where there is anybody.
  void yield(Place where = Place::current()) noexcept;
  void join(unsigned fiber) noexcept;
  // Where nobody waits, an address is still an object that waits and wakes conflict on.
  Object& wait_queue(const void* address) noexcept;

  // Virtual time. A registered deadline may come at any moment; other times come when nothing else can happen.
  TimePoint now() noexcept;
  void expect_deadline(TimePoint deadline) noexcept;
  // A sleep explains why nothing happens until then, so that a stop may look, kick again, or give up.
  void sleep_until(TimePoint time) noexcept;
  // From now on it is no fault if only time can help: a kick was lost on purpose.
  void tolerate_stalls() noexcept { stalls_tolerated_ = true; }
  // Coarse clock for exhaustive search: reading it is then no step and does not advance it.
  void stop_ticking() noexcept { tick_ = stopper::Nanoseconds{0}; }
  // From now on everybody runs in a fixed order: the end of a scenario needs no exploring.
  void stop_exploring() noexcept { exploring_ = false; }

  // Runs what there is in a fixed order until nobody can go on; then calls `begin`, and explores from there.
  void explore_when_settled(std::function<void()> begin);

  uint32_t toss(uint32_t bound) noexcept;
  void*& thread_slot() noexcept;

private:
  enum class Status : uint8_t { kFree, kReady, kBlocked, kEnded };
  struct Member {
    Fiber fiber;
    Status status = Status::kFree;
    bool sleeping = false;
    const void* address = nullptr;
    uint64_t since = 0; // of the block, in steps: the longest waiting comes first
    TimePoint deadline = kForever;
    uint64_t history = 0;
    void* slot = nullptr;
    const char* what = "";
    Place where = Place::current();
    std::array<char, 16> name{}; // in place: the schedule's arena is forgotten
    std::function<void()> body;
  };

  static void enter_fiber();
  // What the running fiber would do if it were left alone.
  enum class Going { kOn, kYields, kBlocks };
  void dispatch(Going going) noexcept;
  [[nodiscard]] bool anybody_blocked() const noexcept;
  void go_to(unsigned next) noexcept;
  void leave_schedule(Verdict verdict) noexcept;
  void make_ready(unsigned fiber) noexcept;
  void went_on() noexcept;
  void settle_history(unsigned fiber, uint64_t before) noexcept;
  void pass_time(TimePoint to) noexcept;
  bool let_time_pass() noexcept;
  [[nodiscard]] TimePoint next_expected() const noexcept;
  void describe(std::string& text) const;
  void print_step(const char* what, const Place& where) noexcept;

  Strategy* strategy_ = nullptr;
  bool tracing_ = false;
  bool exploring_ = true;
  bool stalls_tolerated_ = false;
  unsigned current_ = kNobody;
  unsigned last_run_ = 0;
  unsigned count_ = 0;
  uint32_t ready_ = 0;
  uint64_t steps_ = 0;
  uint64_t fingerprint_ = 0;
  std::function<void()> when_settled_;
  Verdict verdict_ = Verdict::kPassed;
  std::string violation_;
  Fiber outside_;
  std::array<Member, kMaxFibers> members_;
  std::array<Object, 1024> queues_{};

  TimePoint now_{};
  stopper::Nanoseconds tick_{1};
  Object clock_;
  uint64_t clock_history_ = 0;
  std::array<TimePoint, 64> expected_{};
  unsigned expected_count_ = 0;
};

inline TimePoint after(int64_t milliseconds) noexcept {
  return Engine::get().now() + std::chrono::milliseconds(milliseconds);
}

} // namespace stopvisor::sched
