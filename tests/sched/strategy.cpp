// SPDX-License-Identifier: Apache-2.0
#include "tests/sched/strategy.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>

namespace stopvisor::sched {

uint64_t Random::next() noexcept {
  state_ += 0x9e3779b97f4a7c15;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

namespace {

unsigned nth_bit(uint32_t mask, uint32_t n) noexcept {
  for (; n > 0; --n)
    mask &= mask - 1;
  return static_cast<unsigned>(std::countr_zero(mask));
}

constexpr uint32_t kLikelyLength = 800; // of a schedule, in steps: where PCT puts its changes

} // namespace

RandomStrategy::RandomStrategy(uint64_t seed) noexcept : random_(seed) {
  switch (random_.below(4)) {
  case 0:
    break; // uniform
  case 1:
    stickiness_ = 4;
    break;
  case 2:
    stickiness_ = 7;
    break;
  default:
    priorities_ = true;
    for (uint32_t& change : changes_)
      change = random_.below(kLikelyLength);
    for (uint32_t& priority : priority_)
      priority = 1000 + random_.below(1'000'000);
    break;
  }
}

unsigned RandomStrategy::by_priority(uint32_t ready) noexcept {
  unsigned best = kNobody;
  for (uint32_t rest = ready; rest != 0; rest &= rest - 1) {
    const auto fiber = static_cast<unsigned>(std::countr_zero(rest));
    if (best == kNobody || priority_[fiber] > priority_[best])
      best = fiber;
  }
  return best;
}

unsigned RandomStrategy::pick(const Moment& moment) noexcept {
  ++steps_;
  if (priorities_) {
    for (const uint32_t change : changes_)
      if (change == steps_)
        priority_[by_priority(moment.ready)] = lowest_--;
    if (steps_ % 64 == 63) // nobody starves: spinning fibers could keep all others out
      return nth_bit(moment.ready, random_.below(static_cast<uint32_t>(std::popcount(moment.ready))));
    return by_priority(moment.ready);
  }
  if (moment.current != kNobody && random_.below(8) < stickiness_)
    return moment.current;
  return nth_bit(moment.ready, random_.below(static_cast<uint32_t>(std::popcount(moment.ready))));
}

ExhaustiveStrategy::ExhaustiveStrategy(unsigned bound) : bound_(bound) {
  nodes_.reserve(1u << 16);
  seen_size_ = 1u << 16;
  seen_ = static_cast<Seen*>(std::calloc(seen_size_, sizeof(Seen)));
}

ExhaustiveStrategy::~ExhaustiveStrategy() {
  std::free(seen_);
}

void ExhaustiveStrategy::grow() noexcept {
  Seen* const old = seen_;
  const size_t old_size = seen_size_;
  seen_size_ *= 2;
  seen_ = static_cast<Seen*>(std::calloc(seen_size_, sizeof(Seen)));
  if (seen_ == nullptr)
    std::abort();
  for (size_t i = 0; i < old_size; ++i)
    if (old[i].fingerprint != 0) {
      size_t at = old[i].fingerprint & (seen_size_ - 1);
      while (seen_[at].fingerprint != 0)
        at = (at + 1) & (seen_size_ - 1);
      seen_[at] = old[i];
    }
  std::free(old);
}

// RETURNS: whether all that could follow was, or will be, explored from an earlier visit: one that had spent no
// more preemptions, where switching away from whoever ran last then counts as one.
bool ExhaustiveStrategy::seen_before(const Moment& moment) noexcept {
  if (seen_count_ * 2 > seen_size_)
    grow();
  const uint64_t fingerprint = moment.fingerprint | 1;
  const unsigned mine = moment.current == kNobody ? kFree : moment.current % kFree;
  size_t at = fingerprint & (seen_size_ - 1);
  while (seen_[at].fingerprint != 0 && seen_[at].fingerprint != fingerprint)
    at = (at + 1) & (seen_size_ - 1);
  Seen& seen = seen_[at];
  if (seen.fingerprint == 0) {
    ++seen_count_;
    seen.fingerprint = fingerprint;
    std::fill(std::begin(seen.spent), std::end(seen.spent), kUnseen);
  }
  for (unsigned last = 0; last <= kFree; ++last)
    if (seen.spent[last] != kUnseen && seen.spent[last] + (last == kFree || last == mine ? 0u : 1u) <= spent_)
      return true;
  if (asleep_ == 0) // else not all that could follow will be explored from here
    seen.spent[mine] = static_cast<uint8_t>(spent_);
  return false;
}

void ExhaustiveStrategy::touched(const Object& object, Access access) noexcept {
  const uint64_t bit = uint64_t{1} << (mix(1, reinterpret_cast<uintptr_t>(&object)) >> 58);
  if (recording_ != kNone) {
    Footprint& footprint = nodes_[recording_].going_on;
    (access == Access::kRead ? footprint.read : footprint.written) |= bit;
  }
  for (uint32_t rest = asleep_; rest != 0; rest &= rest - 1) {
    const auto fiber = static_cast<unsigned>(std::countr_zero(rest));
    const Footprint& step = wakes_[fiber];
    if (((access == Access::kRead ? step.written : step.written | step.read) & bit) != 0)
      asleep_ &= ~(1u << fiber);
  }
}

unsigned ExhaustiveStrategy::pick(const Moment& moment) noexcept {
  recording_ = kNone;
  const bool free = moment.current == kNobody;
  const uint32_t awake = moment.ready & ~asleep_;
  if (awake == 0)
    return kNobody;
  if (std::has_single_bit(moment.ready))
    return static_cast<unsigned>(std::countr_zero(moment.ready));
  const bool goes_on = !free && (awake >> moment.current & 1) != 0;
  if (!free && spent_ == bound_) {
    // Nothing to decide, but here, too, the schedule may run into a state that is known. Every fourth is enough.
    if (!goes_on ||
        (!replaying_ && depth_ >= nodes_.size() && (moment.fingerprint & 3) == 0 && seen_before(moment)))
      return kNobody;
    return moment.current;
  }
  const size_t depth = depth_++;
  if (depth >= nodes_.size()) {
    if (!replaying_ && seen_before(moment))
      return kNobody;
    const auto first = static_cast<uint8_t>(goes_on ? static_cast<int>(moment.current) : std::countr_zero(awake));
    const auto usual =
        static_cast<uint8_t>(free ? std::countr_zero(moment.ready) : static_cast<int>(moment.current));
    nodes_.push_back({{}, awake & ~(1u << first), first, usual, static_cast<uint8_t>(spent_), free});
    for (const auto& [at, whom] : wanted_)
      if (at == depth && (moment.ready >> whom & 1) != 0)
        nodes_.back().chosen = whom;
  }
  Node& node = nodes_[depth];
  if ((moment.ready >> node.chosen & 1) == 0) {
    std::fprintf(stderr, "sched: the world is not deterministic: step %zu cannot be repeated\n", depth);
    std::abort();
  }
  if (node.free)
    return node.chosen;
  if (node.chosen == moment.current) {
    recording_ = depth;
    return node.chosen;
  }
  ++spent_;
  if (goes_on && !replaying_) {
    asleep_ |= 1u << moment.current;
    wakes_[moment.current] = node.going_on;
  }
  return node.chosen;
}

bool ExhaustiveStrategy::next_schedule() noexcept {
  if (replaying_)
    return false;
  // A schedule that was given up or failed may have ended before the nodes of an earlier one: those are gone.
  while (nodes_.size() > depth_)
    nodes_.pop_back();
  while (!nodes_.empty() && nodes_.back().untried == 0)
    nodes_.pop_back();
  depth_ = 0;
  spent_ = 0;
  asleep_ = 0;
  recording_ = kNone;
  if (nodes_.empty())
    return false;
  Node& node = nodes_.back();
  node.chosen = static_cast<uint8_t>(std::countr_zero(node.untried));
  node.untried &= node.untried - 1;
  return true;
}

std::string ExhaustiveStrategy::trace() const {
  std::string text = std::to_string(bound_) + ":";
  for (size_t at = 0; at < nodes_.size() && at < depth_; ++at)
    if (nodes_[at].chosen != nodes_[at].usual)
      text += (text.back() == ':' ? "" : ",") + std::to_string(at) + "=" + std::to_string(nodes_[at].chosen);
  return text;
}

bool ExhaustiveStrategy::replay(const std::string& trace) {
  replaying_ = true;
  const char* text = trace.c_str();
  char* end = nullptr;
  bound_ = static_cast<unsigned>(std::strtoul(text, &end, 10));
  if (end == text || *end != ':')
    return false;
  for (text = end + 1; *text != '\0'; text = *end == ',' ? end + 1 : end) {
    const size_t at = std::strtoul(text, &end, 10);
    if (end == text || *end != '=')
      return false;
    text = end + 1;
    wanted_.emplace_back(at, static_cast<uint8_t>(std::strtoul(text, &end, 10)));
    if (end == text || (*end != ',' && *end != '\0'))
      return false;
  }
  return true;
}

} // namespace stopvisor::sched
