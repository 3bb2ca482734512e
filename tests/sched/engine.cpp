// SPDX-License-Identifier: Apache-2.0
#include "tests/sched/engine.h"

#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

#include "tests/sched/arena.h"

namespace stopvisor::sched {
namespace {

constexpr uint64_t kStepLimit = 60'000; // a schedule needs about a thousand

__attribute__((format(printf, 1, 0))) std::string format_text(const char* format, va_list arguments) {
  char text[512];
  std::vsnprintf(text, sizeof text, format, arguments);
  return text;
}

unsigned next_in_turn(uint32_t ready, unsigned current) noexcept {
  for (unsigned distance = 1;; ++distance)
    if ((ready >> (current + distance) % 32 & 1) != 0)
      return (current + distance) % 32;
}

const char* base_name(const char* path) noexcept {
  const char* const slash = std::strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

} // namespace

Engine& Engine::get() noexcept {
  static Engine engine;
  return engine;
}

void Engine::begin(Strategy& strategy, bool tracing) noexcept {
  strategy_ = &strategy;
  tracing_ = tracing;
  exploring_ = true;
  stalls_tolerated_ = false;
  current_ = kNobody;
  last_run_ = 0;
  for (unsigned i = 0; i < count_; ++i)
    members_[i].status = Status::kFree, members_[i].body = nullptr; // its memory is still there
  count_ = 0;
  when_settled_ = nullptr;
  ready_ = 0;
  steps_ = 0;
  fingerprint_ = 0;
  verdict_ = Verdict::kPassed;
  queues_.fill({});
  now_ = TimePoint{} + std::chrono::seconds(1);
  tick_ = stopper::Nanoseconds{1};
  clock_ = {};
  clock_history_ = 0;
  expected_count_ = 0;
}

unsigned Engine::spawn(const char* name, std::function<void()> body) {
  unsigned number = 0; // a joined fiber's place is used again
  while (number < count_ && members_[number].status != Status::kFree)
    ++number;
  if (number == kMaxFibers)
    fail("too many fibers");
  Member& member = members_[number];
  if (number == count_) {
    ++count_;
    member.history = 0;
    fingerprint_ += mix(number + 1, 0);
  }
  const uint64_t before = member.history;
  member.history = mix(before + 1, active() ? members_[current_].history : 0);
  settle_history(number, before);
  std::snprintf(member.name.data(), member.name.size(), "%s", name);
  member.body = std::move(body);
  member.slot = nullptr;
  member.sleeping = false;
  member.what = "its start";
  member.fiber.prepare(&Engine::enter_fiber);
  make_ready(number);
  return number;
}

void Engine::settle_history(unsigned fiber, uint64_t before) noexcept {
  const uint64_t history = fiber == kClock ? clock_history_ : members_[fiber].history;
  if (history != before)
    fingerprint_ += mix(fiber + 1, history) - mix(fiber + 1, before);
}

void Engine::make_ready(unsigned fiber) noexcept {
  members_[fiber].status = Status::kReady;
  members_[fiber].deadline = kForever;
  ready_ |= 1u << fiber;
}

Verdict Engine::run() noexcept {
  if (ready_ != 0) {
    last_run_ = static_cast<unsigned>(std::countr_zero(ready_));
    current_ = last_run_;
    Fiber::publish(this);
    Fiber::switch_between(outside_, members_[current_].fiber);
    current_ = kNobody;
    for (unsigned i = 0; i < count_; ++i)
      Fiber::seen(&members_[i]);
  }
  return verdict_;
}

void Engine::enter_fiber() {
  Fiber::arrived();
  Engine& engine = get();
  Member& self = engine.members_[engine.current_];
  Fiber::seen(&engine);
  engine.went_on();
  self.body();
  Fiber::publish(&self);
  self.status = Status::kEnded;
  engine.ready_ &= ~(1u << engine.current_);
  engine.also(engine.wait_queue(&self), Access::kWrite);
  engine.unblock(&self, true);
  engine.dispatch(Going::kBlocks);
  std::abort(); // nobody goes on here
}

void Engine::leave_schedule(Verdict verdict) noexcept {
  verdict_ = verdict;
  Member& self = members_[current_];
  Fiber::switch_between(self.fiber, outside_);
}

void Engine::go_to(unsigned next) noexcept {
  if (next == current_)
    return;
  Member& self = members_[current_];
  current_ = next;
  Fiber::switch_between(self.fiber, members_[next].fiber);
}

// Chooses who takes the next step and goes there. RETURNS when it is the caller's turn again.
void Engine::dispatch(Going going) noexcept {
  for (;;) {
    uint32_t ready = ready_;
    if (going == Going::kYields && std::popcount(ready) > 1)
      ready &= ~(1u << current_);
    if (ready == 0 && when_settled_) {
      exploring_ = true;
      std::exchange(when_settled_, nullptr)();
      continue;
    }
    if (ready == 0) {
      if (!anybody_blocked())
        return leave_schedule(Verdict::kPassed);
      if (!let_time_pass())
        fail("stuck (deadlock or lost wake-up): nobody can go on");
      continue;
    }
    unsigned next = kNobody;
    if (!exploring_) {
      next = going == Going::kOn ? current_ : next_in_turn(ready, current_);
    } else {
      if (next_expected() != kForever)
        ready |= 1u << kClock;
      next = strategy_->pick({ready, going == Going::kOn ? current_ : kNobody, fingerprint_});
    }
    if (next == kNobody)
      return leave_schedule(Verdict::kPruned);
    if (next != kClock)
      return go_to(next);
    pass_time(next_expected());
  }
}

bool Engine::anybody_blocked() const noexcept {
  return std::any_of(members_.begin(), members_.begin() + count_,
                     [](const Member& member) { return member.status == Status::kBlocked; });
}

void Engine::step(Object& object, Access access, const char* what, Place where) noexcept {
  if (!active())
    return;
  Member& self = members_[current_];
  self.what = what;
  self.where = where;
  if (++steps_ > kStepLimit)
    fail("livelock: no end after %llu steps", static_cast<unsigned long long>(kStepLimit));
  dispatch(Going::kOn);
  also(object, access);
  if (tracing_)
    print_step(what, where);
}

void Engine::also(Object& object, Access access) noexcept {
  if (!active())
    return;
  uint64_t& history = members_[current_].history;
  const uint64_t before = history;
  touch(history, object, access);
  settle_history(current_, before);
  strategy_->touched(object, access);
}

// It stands elsewhere than before, though it touched nothing.
void Engine::went_on() noexcept {
  uint64_t& history = members_[current_].history;
  const uint64_t before = history;
  history = mix(before, 5);
  settle_history(current_, before);
}

void Engine::block(const void* address, TimePoint deadline, const char* what, Place where) noexcept {
  if (!active())
    return;
  Member& self = members_[current_];
  self.what = what;
  self.where = where;
  if (deadline != kForever)
    also(clock_, Access::kRead);
  if (deadline <= now_)
    return;
  self.status = Status::kBlocked;
  self.address = address;
  self.deadline = deadline;
  self.since = steps_;
  ready_ &= ~(1u << current_);
  dispatch(Going::kBlocks);
  went_on();
}

void Engine::unblock(const void* address, bool all) noexcept {
  unsigned longest = kNobody;
  for (unsigned i = 0; i < count_; ++i) {
    if (members_[i].status != Status::kBlocked || members_[i].address != address)
      continue;
    if (all)
      make_ready(i);
    else if (longest == kNobody || members_[i].since < members_[longest].since)
      longest = i;
  }
  if (longest != kNobody)
    make_ready(longest);
}

void Engine::unblock_fiber(unsigned fiber) noexcept {
  if (members_[fiber].status == Status::kBlocked)
    make_ready(fiber);
}

void Engine::explore_when_settled(std::function<void()> begin) {
  exploring_ = false;
  when_settled_ = std::move(begin);
}

void Engine::yield(Place where) noexcept {
  if (!active())
    return;
  Member& self = members_[current_];
  self.what = "yield";
  self.where = where;
  if (++steps_ > kStepLimit)
    fail("livelock: no end after %llu steps", static_cast<unsigned long long>(kStepLimit));
  dispatch(Going::kYields);
  went_on();
}

void Engine::join(unsigned fiber) noexcept {
  Member& other = members_[fiber];
  step(wait_queue(&other), Access::kWrite, "join");
  while (other.status != Status::kEnded && other.status != Status::kFree)
    block(&other, kForever, "join", Place::current());
  other.status = Status::kFree;
  Fiber::seen(&other);
  also(wait_queue(&other), Access::kWrite);
}

Object& Engine::wait_queue(const void* address) noexcept {
  // Two addresses may share one: that only makes some independent steps look dependent.
  const auto number = reinterpret_cast<uintptr_t>(address);
  return queues_[(number >> 2 ^ number >> 12) % queues_.size()];
}

// ---- time ---------------------------------------------------------------------------------------------------

TimePoint Engine::now() noexcept {
  // Not a step of its own: time that passes just before this look might as well pass before the step it belongs to.
  also(clock_, Access::kRead);
  now_ += tick_;
  return now_;
}

void Engine::expect_deadline(TimePoint deadline) noexcept {
  if (expected_count_ < expected_.size())
    expected_[expected_count_++] = deadline;
}

TimePoint Engine::next_expected() const noexcept {
  TimePoint next = kForever;
  for (unsigned i = 0; i < expected_count_; ++i)
    if (expected_[i] > now_)
      next = std::min(next, expected_[i]);
  return next;
}

void Engine::pass_time(TimePoint to) noexcept {
  now_ = std::max(now_, to);
  const uint64_t before = clock_history_;
  touch(clock_history_, clock_, Access::kWrite);
  settle_history(kClock, before);
  strategy_->touched(clock_, Access::kWrite);
  if (tracing_)
    std::printf("%6llu  %-10s time passes: %lld ms\n", static_cast<unsigned long long>(steps_), "clock",
                static_cast<long long>(now_.time_since_epoch().count() / 1'000'000 - 1000));
  for (unsigned i = 0; i < count_; ++i)
    if (members_[i].status == Status::kBlocked && members_[i].deadline <= now_)
      make_ready(i);
}

// Nobody is ready. RETURNS: whether time may pass until somebody's deadline.
bool Engine::let_time_pass() noexcept {
  TimePoint earliest = kForever;
  bool explained = stalls_tolerated_;
  for (unsigned i = 0; i < count_; ++i)
    if (members_[i].status == Status::kBlocked) {
      earliest = std::min(earliest, members_[i].deadline);
      explained = explained || members_[i].sleeping;
    }
  if (earliest == kForever)
    return false;
  if (!explained)
    fail("stuck (deadlock or lost wake-up): only a time-out would go on");
  if (++steps_ > kStepLimit)
    fail("livelock: time passes and nothing happens");
  pass_time(earliest);
  return true;
}

void Engine::sleep_until(TimePoint time) noexcept {
  Member& self = members_[current_];
  self.sleeping = true;
  while (now_ < time)
    block(&self.sleeping, time, "asleep", Place::current());
  self.sleeping = false;
}

uint32_t Engine::toss(uint32_t bound) noexcept {
  return exploring_ ? strategy_->toss(bound) : 0;
}

void*& Engine::thread_slot() noexcept {
  static void* outside = nullptr;
  return active() ? members_[current_].slot : outside;
}

// ---- what people read -----------------------------------------------------------------------------------------

void Engine::print_step(const char* what, const Place& where) noexcept {
  std::printf("%6llu  %-10s %s  (%s:%u)\n", static_cast<unsigned long long>(steps_), members_[current_].name.data(),
              what, base_name(where.file_name()), static_cast<unsigned>(where.line()));
}

void Engine::note(const char* format, ...) noexcept {
  if (!tracing_)
    return;
  va_list arguments;
  va_start(arguments, format);
  std::printf("        %-10s   %s\n", active() ? members_[current_].name.data() : "",
              format_text(format, arguments).c_str());
  va_end(arguments);
}

void Engine::describe(std::string& text) const {
  for (unsigned i = 0; i < count_; ++i) {
    const Member& member = members_[i];
    if (member.status != Status::kReady && member.status != Status::kBlocked)
      continue;
    text += std::string("\n  ") + member.name.data() + (i == current_ ? " (running)" : "") +
            (member.status == Status::kBlocked ? ": blocked in " : ": at ") + member.what + " (" +
            base_name(member.where.file_name()) + ":" + std::to_string(member.where.line()) + ")";
  }
}

void Engine::fail(const char* format, ...) noexcept {
  const ArenaPause pause;
  va_list arguments;
  va_start(arguments, format);
  violation_ = format_text(format, arguments);
  va_end(arguments);
  describe(violation_);
  if (active())
    leave_schedule(Verdict::kFailed);
  std::fprintf(stderr, "sched: outside a schedule: %s\n", violation_.c_str());
  std::abort();
}

} // namespace stopvisor::sched
