// SPDX-License-Identifier: Apache-2.0
// The two sides of a hand-over, driven through every order of words, broken links and deaths there is.
//
// tests/model/handover.pml asks the same of the rules; this asks it of the code.
#include <algorithm>
#include <array>
#include <deque>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tools/migrate/handover.h"

namespace stopvisor::migrate {
namespace {

using Source = SourceSide::State;
using Destination = DestinationSide::State;

constexpr size_t kLinks = 3; // the first, and as often as the source dials again

struct Bounds {
  unsigned breaks = kLinks;
  unsigned deaths = 0;
  bool has_operator = false;
  bool has_limit = false; // the destination gives up by itself
  bool cancels = false;   // the source is asked once to take the guest back, whatever it has said
  bool has_disks = false; // that the destination may not get at the commit
};

// Everything there is at one moment. Words that are under way when a link breaks may arrive or not.
struct World {
  SourceSide source;
  DestinationSide destination;
  bool source_dead = false;
  bool destination_dead = false;
  bool source_guest = false; // runs; the source holds it when it all begins
  bool destination_guest = false;
  bool ran_at_destination = false;
  bool source_let_go = false;
  bool operator_spoke = false;
  bool cancelled = false;
  std::array<std::deque<Word>, kLinks> to_destination;
  std::array<std::deque<Word>, kLinks> to_source;
  std::array<bool, kLinks> broken{};
  size_t dialled = 1;
  size_t heard = 0; // the destination's newest
  unsigned breaks = 0;
  unsigned deaths = 0;
  std::string story;

  [[nodiscard]] std::string key() const {
    std::string text{static_cast<char>(source.state()), static_cast<char>(destination.state())};
    for (const bool flag : {source_dead, destination_dead, source_guest, destination_guest, ran_at_destination,
                            source_let_go, operator_spoke, cancelled})
      text += flag ? '1' : '0';
    for (size_t link = 0; link < kLinks; ++link) {
      text += broken[link] ? '|' : ':';
      for (const Word word : to_destination[link])
        text += static_cast<char>(word);
      text += '/';
      for (const Word word : to_source[link])
        text += static_cast<char>(word);
    }
    return text + std::to_string(dialled) + std::to_string(heard) + std::to_string(breaks) + std::to_string(deaths);
  }
  [[nodiscard]] size_t link() const { return dialled - 1; } // the source's
  [[nodiscard]] bool somebody_runs() const { return source_guest || destination_guest; }
  [[nodiscard]] bool source_knows() const {
    return source.state() == Source::kGone || source.state() == Source::kRuns;
  }
};

class Explorer {
public:
  explicit Explorer(const Bounds& bounds) : bounds_(bounds) {
    World first;
    at_source(first, SourceSide::begin(), "begin");
    while (!open_.empty() && !::testing::Test::HasFailure()) {
      const World world = std::move(open_.back());
      open_.pop_back();
      const size_t before = found_;
      steps_of_source(world);
      steps_of_destination(world);
      steps_of_others(world);
      if (found_ == before)
        at_rest(world);
    }
  }
  [[nodiscard]] size_t worlds() const { return seen_.size(); }

private:
  void reach(World world, const std::string& step) {
    ++found_;
    world.story += step + "; ";
    EXPECT_FALSE(world.source_guest && world.destination_guest) << "both run it: " << world.story;
    EXPECT_FALSE(world.source_guest && world.ran_at_destination && !world.operator_spoke)
        << "it goes back unasked: " << world.story;
    EXPECT_FALSE(world.source_guest && world.source_let_go) << "what was let go of runs: " << world.story;
    if (seen_.insert(world.key()).second)
      open_.push_back(std::move(world));
  }
  static void act(World& world, const Turn& turn, bool source) {
    if (turn.run_guest && source)
      world.source_guest = true;
    if (turn.run_guest && !source)
      world.destination_guest = world.ran_at_destination = true;
    if (turn.drop_guest && source)
      world.source_let_go = true;
  }
  // Its word arrives; or, where the link is broken, may not.
  void at_source(World world, const Turn& turn, const std::string& step) {
    act(world, turn, true);
    if (!turn.say || world.broken[world.link()])
      reach(world, step);
    if (turn.say) {
      world.to_destination[world.link()].push_back(*turn.say);
      reach(std::move(world), step);
    }
  }
  void at_destination(World world, const Turn& turn, const std::string& step) {
    act(world, turn, false);
    if (!turn.say || world.broken[world.heard])
      reach(world, step);
    if (turn.say) {
      world.to_source[world.heard].push_back(*turn.say);
      reach(std::move(world), step);
    }
  }

  void steps_of_source(const World& world) {
    if (world.source_dead || world.source.state() == Source::kGone)
      return;
    if (!world.to_source[world.link()].empty()) {
      World next = world;
      const Word word = next.to_source[next.link()].front();
      next.to_source[next.link()].pop_front();
      const Turn turn = next.source.hear(word);
      at_source(std::move(next), turn, "source hears " + std::to_string(static_cast<int>(word)));
    }
    if (world.source.state() == Source::kRuns)
      return;
    if (world.broken[world.link()] && world.source.state() != Source::kDoubts) {
      World next = world;
      const Turn turn = next.source.lose_link();
      at_source(std::move(next), turn, "source loses the link");
    }
    if (world.source.state() == Source::kWaits) {
      World next = world;
      const Turn turn = next.source.give_up();
      at_source(std::move(next), turn, "source gives up");
    }
    if (bounds_.cancels && !world.cancelled && world.source.state() == Source::kDecided) {
      World next = world;
      next.cancelled = true;
      const Turn turn = next.source.give_up();
      at_source(std::move(next), turn, "source is cancelled");
    }
    if (world.source.state() == Source::kDoubts && world.dialled < kLinks) {
      for (const bool go_on : {false, true}) {
        World next = world;
        ++next.dialled;
        const Turn turn = next.source.dialled_again(go_on);
        at_source(std::move(next), turn, go_on ? "source dials to go on" : "source dials to abandon");
      }
    }
  }
  void steps_of_destination(const World& world) {
    if (world.destination_dead)
      return;
    if (!world.to_destination[world.heard].empty()) {
      for (const bool whole : {false, true}) { // as it may be where it is asked
        World next = world;
        const Word word = next.to_destination[next.heard].front();
        next.to_destination[next.heard].pop_front();
        const Turn turn = next.destination.hear(word, whole);
        at_destination(std::move(next), turn, "destination hears " + std::to_string(static_cast<int>(word)));
      }
      steps_without_disks(world);
    }
    if (world.broken[world.heard] &&
        (world.destination.state() == Destination::kLoads || world.destination.state() == Destination::kReady)) {
      World next = world;
      const Turn turn = next.destination.lose_link();
      at_destination(std::move(next), turn, "destination loses the link");
    }
    if (world.heard + 1 < world.dialled) {
      World next = world;
      ++next.heard;
      reach(std::move(next), "destination is dialled");
    }
    const bool may_give_up = world.destination.state() == Destination::kLoads ||
                             world.destination.state() == Destination::kReady ||
                             world.destination.state() == Destination::kOrphaned;
    if (bounds_.has_limit && may_give_up) {
      World next = world;
      const Turn turn = next.destination.give_up();
      at_destination(std::move(next), turn, "destination gives up");
    }
  }
  // It hears that the guest is its own, and cannot have the disks.
  void steps_without_disks(const World& world) {
    const auto state = world.destination.state();
    const auto& words = world.to_destination[world.heard];
    if (!bounds_.has_disks || words.front() != Word::kCommit ||
        (state != Destination::kReady && state != Destination::kOrphaned))
      return;
    World next = world;
    next.to_destination[next.heard].pop_front();
    const Turn turn = next.destination.give_up();
    at_destination(std::move(next), turn, "destination cannot have the disks");
  }
  void steps_of_others(const World& world) {
    if (world.breaks < bounds_.breaks && !world.broken[world.link()]) {
      World next = world;
      ++next.breaks;
      next.broken[next.link()] = true;
      reach(std::move(next), "the link breaks");
    }
    if (world.deaths < bounds_.deaths) {
      for (const bool source : {true, false}) {
        if ((source ? world.source_dead : world.destination_dead) || (source && world.source_let_go))
          continue;
        World next = world;
        ++next.deaths;
        (source ? next.source_dead : next.destination_dead) = true;
        (source ? next.source_guest : next.destination_guest) = false;
        next.broken[next.link()] = true;
        reach(std::move(next), source ? "source dies" : "destination dies");
      }
    }
    if (bounds_.has_operator)
      steps_of_operator(world);
  }
  // Does what the ADR allows, and only where a side asks.
  void steps_of_operator(const World& world) {
    if (!world.source_dead && world.source.state() == Source::kDoubts) {
      const bool ended = world.destination_dead || world.destination.state() == Destination::kGaveUp;
      if (ended || world.destination.state() == Destination::kStarted) {
        World next = world;
        next.operator_spoke = next.operator_spoke || ended;
        const Turn turn = next.source.told(ended);
        at_source(std::move(next), turn, "the operator tells the source");
      }
    }
    if (!world.destination_dead && world.destination.state() == Destination::kOrphaned &&
        (world.source_dead || world.source.state() == Source::kRuns)) {
      World next = world;
      const Turn turn = world.source_dead ? next.destination.told_to_start() : next.destination.give_up();
      at_destination(std::move(next), turn, "the operator tells the destination");
    }
  }

  // Nothing more can happen.
  void at_rest(const World& world) const {
    const bool doubts = !world.source_dead && world.source.state() == Source::kDoubts;
    const bool orphaned = !world.destination_dead && world.destination.state() == Destination::kOrphaned;
    EXPECT_TRUE(world.somebody_runs() || world.deaths != 0 || doubts || orphaned)
        << "nobody says so: " << world.story;
    if (bounds_.has_operator) {
      EXPECT_FALSE(doubts) << "for ever in doubt: " << world.story;
      EXPECT_FALSE(orphaned && world.source_dead) << "for ever orphaned: " << world.story;
    }
    if (bounds_.deaths == 0 && bounds_.breaks < kLinks) {
      EXPECT_TRUE(world.somebody_runs() && world.source_knows()) << "it does not settle: " << world.story;
    }
  }

  Bounds bounds_;
  std::vector<World> open_;
  std::set<std::string> seen_;
  size_t found_ = 0;
};

TEST(Handover, OneSideRunsTheGuestWhateverLinksDo) {
  EXPECT_GT(Explorer({}).worlds(), 500U);
}
TEST(Handover, OneSideRunsTheGuestWhoeverDies) {
  EXPECT_GT(Explorer({.deaths = 2, .has_limit = true}).worlds(), 5000U);
}
TEST(Handover, OperatorEndsEveryDoubt) {
  EXPECT_GT(Explorer({.deaths = 2, .has_operator = true, .has_limit = true}).worlds(), 5000U);
}
TEST(Handover, OneSideRunsTheGuestThatIsCancelledOrHasNoDisks) {
  EXPECT_GT(Explorer({.cancels = true, .has_disks = true}).worlds(), 1000U);
  EXPECT_GT(Explorer({.deaths = 1, .has_operator = true, .cancels = true, .has_disks = true}).worlds(), 10000U);
}
TEST(Handover, SettlesWhereTheLastLinkHolds) {
  EXPECT_GT(Explorer({.breaks = kLinks - 1}).worlds(), 300U);
  EXPECT_GT(Explorer({.breaks = kLinks - 1, .cancels = true, .has_disks = true}).worlds(), 500U);
}

TEST(Handover, IsThreeWordsAndTheirAnswersWhereNothingGoesWrong) {
  SourceSide source;
  DestinationSide destination;
  Turn turn = destination.hear(*SourceSide::begin().say, true);
  EXPECT_EQ(turn.say, Word::kPrepared);
  turn = source.hear(*turn.say);
  EXPECT_EQ(turn.say, Word::kCommit);
  turn = destination.hear(*turn.say);
  EXPECT_TRUE(turn.run_guest);
  EXPECT_EQ(turn.say, Word::kRunning);
  turn = source.hear(*turn.say);
  EXPECT_TRUE(turn.drop_guest);
  EXPECT_FALSE(turn.run_guest);
  EXPECT_EQ(source.state(), Source::kGone);
  EXPECT_EQ(destination.state(), Destination::kStarted);
}

TEST(Handover, OperatorIsHeardWhereSomebodyAsks) {
  SourceSide source;
  EXPECT_FALSE(source.told(true).run_guest);
  (void)source.hear(Word::kPrepared);
  EXPECT_FALSE(source.told(true).run_guest) << "the link is whole, the destination may run it at any moment";
  DestinationSide destination;
  EXPECT_FALSE(destination.told_to_start().run_guest);
  (void)destination.hear(Word::kPrepare, true);
  EXPECT_FALSE(destination.told_to_start().run_guest);
}
TEST(Handover, NothingButCommitStartsTheGuest) {
  for (const Word word : {Word::kPrepare, Word::kAbandon, Word::kPrepared, Word::kRunning, Word::kAbandoned}) {
    DestinationSide destination;
    (void)destination.hear(Word::kPrepare, true);
    EXPECT_FALSE(destination.hear(word, true).run_guest) << static_cast<int>(word);
    EXPECT_EQ(destination.state(), Destination::kGaveUp);
  }
}

} // namespace
} // namespace stopvisor::migrate
