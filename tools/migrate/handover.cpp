// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/handover.h"

namespace stopvisor::migrate {

Turn SourceSide::run() noexcept {
  state_ = State::kRuns;
  return {.run_guest = true};
}
Turn SourceSide::drop() noexcept {
  state_ = State::kGone;
  return {.drop_guest = true};
}

Turn SourceSide::hear(Word word) noexcept {
  switch (state_) {
  case State::kWaits:
    if (word == Word::kPrepared) {
      state_ = State::kDecided; // before the word is out: from now on it may have been heard
      return {.say = Word::kCommit};
    }
    return give_up();
  case State::kDecided:
  case State::kDoubts: // it was read after the link had been found broken
    if (word == Word::kRunning)
      return drop();
    if (word == Word::kAbandoned)
      return run();
    return {}; // kPrepared once more, or nonsense: neither says who has the guest
  case State::kGone:
  case State::kRuns:
    return {};
  }
  return {};
}

Turn SourceSide::lose_link() noexcept {
  switch (state_) {
  case State::kWaits:
    return run();
  case State::kDecided:
    state_ = State::kDoubts;
    return {};
  case State::kDoubts:
  case State::kGone:
  case State::kRuns:
    return {};
  }
  return {};
}

Turn SourceSide::give_up() noexcept {
  switch (state_) {
  case State::kWaits: {
    Turn turn = run();
    turn.say = Word::kAbandon;
    return turn;
  }
  case State::kDecided: // the destination makes up its mind; its answer decides
    return {.say = Word::kAbandon};
  case State::kDoubts:
  case State::kGone:
  case State::kRuns:
    return {};
  }
  return {};
}

Turn SourceSide::dialled_again(bool go_on) noexcept {
  switch (state_) {
  case State::kDecided:
  case State::kDoubts:
    state_ = State::kDecided;
    return {.say = go_on ? Word::kCommit : Word::kAbandon};
  case State::kWaits: // nobody dials again before anything is decided
  case State::kGone:
  case State::kRuns:
    return {};
  }
  return {};
}

Turn SourceSide::told(bool here) noexcept {
  return state_ != State::kDoubts ? Turn{} : here ? run() : drop();
}

Turn DestinationSide::start() noexcept {
  state_ = State::kStarted;
  return {.run_guest = true, .say = Word::kRunning};
}

Turn DestinationSide::hear(Word word, bool whole) noexcept {
  switch (state_) {
  case State::kLoads:
    if (word == Word::kPrepare && whole) {
      state_ = State::kReady;
      return {.say = Word::kPrepared};
    }
    return give_up();
  case State::kReady:
  case State::kOrphaned:
    return word == Word::kCommit ? start() : give_up();
  case State::kStarted:
    return {.say = Word::kRunning};
  case State::kGaveUp:
    return {.say = Word::kAbandoned};
  }
  return {};
}

Turn DestinationSide::lose_link() noexcept {
  switch (state_) {
  case State::kLoads:
    state_ = State::kGaveUp;
    return {.drop_guest = true};
  case State::kReady:
    state_ = State::kOrphaned;
    return {};
  case State::kOrphaned:
  case State::kStarted:
  case State::kGaveUp:
    return {};
  }
  return {};
}

Turn DestinationSide::give_up() noexcept {
  switch (state_) {
  case State::kLoads:
  case State::kReady:
  case State::kOrphaned:
    state_ = State::kGaveUp;
    return {.drop_guest = true, .say = Word::kAbandoned};
  case State::kStarted:
  case State::kGaveUp:
    return {};
  }
  return {};
}

Turn DestinationSide::told_to_start() noexcept {
  return state_ == State::kOrphaned ? start() : Turn{};
}

} // namespace stopvisor::migrate
