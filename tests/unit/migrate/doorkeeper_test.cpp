// SPDX-License-Identifier: Apache-2.0
// One migration is let in, and those who know its id; whoever else calls keeps nobody waiting.
#include <mutex>
#include <optional>
#include <thread>

#include "tests/unit/migrate/calls.h"
#include "tools/migrate/doorkeeper.h"

namespace stopvisor::migrate {
namespace {

using testing::hello_of;
using testing::Place;

constexpr std::byte kOurs{7};
constexpr std::byte kOther{8};

class Door : public ::testing::Test {
protected:
  Door() {
    keeper_.emplace("door", place_.listener(), [this](const vmm::Error& stranger) {
      const std::lock_guard guard(mutex_);
      strangers_.push_back(stranger.reason);
      told_.notify_all();
    });
  }
  // What was told of the strangers, as soon as it is of so many.
  std::vector<std::string> strangers(size_t count) {
    std::unique_lock lock(mutex_);
    told_.wait(lock, [&] { return strangers_.size() >= count; });
    return strangers_;
  }
  static std::string reason(const std::expected<std::unique_ptr<Call>, vmm::Error>& call) {
    return call ? "welcomed" : call.error().reason;
  }
  static void write(Link& link, std::string_view text) {
    const iovec part{const_cast<char*>(text.data()), text.size()};
    (void)link.write(std::span(&part, 1));
  }
  // Our migration's control link.
  std::unique_ptr<Call> let_in() {
    auto call = place_.call(hello_of(kOurs));
    EXPECT_EQ(reason(call), "welcomed");
    source_ = keeper_->await_source({}).value();
    return std::move(*call);
  }

  Place place_;
  std::mutex mutex_;
  std::condition_variable told_;
  std::vector<std::string> strangers_; // under mutex_
  std::unique_ptr<Call> source_;       // as the door let it in
  std::optional<Doorkeeper> keeper_;   // last
};

TEST_F(Door, LetsASourceIn) {
  const auto call = let_in();
  EXPECT_EQ(source_->hello().vm, "vm");
  EXPECT_EQ(source_->hello().id, hello_of(kOurs).id);
}

TEST_F(Door, SendsStrangersAwayByName) {
  const auto browser = place_.dial();
  write(*browser, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_NE(strangers(1)[0].find("does not speak our protocol"), std::string::npos) << strangers(1)[0];
  {
    const auto scanner = place_.dial();
  }
  EXPECT_EQ(strangers(2)[1], "hung up");
  Hello old = hello_of(kOther);
  old.least_version = old.most_version = 99;
  const auto refused = place_.call(old);
  EXPECT_NE(reason(refused).find("99"), std::string::npos) << reason(refused);
  (void)let_in();
}

TEST_F(Door, KeepsNobodyWaitingForWhoIsSilent) {
  const auto silent = place_.dial();
  const auto half = place_.dial();
  write(*half, "S");
  (void)let_in();
}

TEST_F(Door, LetsACrowdWaitOutsideAndTheSourceInWhenOneHasGone) {
  std::vector<std::unique_ptr<Link>> crowd;
  for (size_t caller = 0; caller < Doorkeeper::kMostAtOnce; ++caller)
    crowd.push_back(place_.dial());
  auto calling = std::async(std::launch::async, [&] { return place_.call(hello_of(kOurs)); });
  crowd.pop_back();
  EXPECT_EQ(reason(calling.get()), "welcomed");
}

TEST_F(Door, IsBusyForASecondSource) {
  const auto call = let_in();
  const auto second = place_.call(hello_of(kOther));
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().status, vmm::Status::kBusy);
  EXPECT_NE(reason(second).find("another migration is arriving here already"), std::string::npos) << reason(second);
}

TEST_F(Door, LetsOneOfTwoSourcesInThatComeTogether) {
  auto other = std::async(std::launch::async, [&] { return place_.call(hello_of(kOther)); });
  const auto mine = place_.call(hello_of(kOurs));
  const auto theirs = other.get();
  EXPECT_NE(mine.has_value(), theirs.has_value());
  EXPECT_EQ(keeper_->await_source({}).value()->hello().id, hello_of(mine ? kOurs : kOther).id);
}

TEST_F(Door, LetsStreamsInByTheirIdAndGivesThemInOrder) {
  const auto call = let_in();
  const auto second = place_.call(hello_of(kOurs, LinkRole::kStream, 2));
  EXPECT_EQ(reason(second), "welcomed");
  const auto first = place_.call(hello_of(kOurs, LinkRole::kStream, 1));
  EXPECT_EQ(reason(first), "welcomed");
  for (const auto& [id, number, why] :
       {std::tuple{kOther, uint16_t{3}, "belongs to no migration that arrives here"},
        std::tuple{kOurs, uint16_t{2}, "is a stream that is there already"}}) {
    const auto refused = place_.call(hello_of(id, LinkRole::kStream, number));
    EXPECT_NE(reason(refused).find(why), std::string::npos) << reason(refused);
  }
  const auto streams = keeper_->await_streams(2, {});
  ASSERT_TRUE(streams.has_value()) << streams.error().message();
  ASSERT_EQ(streams->size(), 2U);
  EXPECT_EQ((*streams)[0]->hello().number, 1);
  EXPECT_EQ((*streams)[1]->hello().number, 2);
}

// The id is known before the source is welcomed: what follows the welcome at once is known by it.
TEST_F(Door, LetsAStreamInThatFollowsTheWelcomeAtOnce) {
  for (int round = 0; round < 100; ++round) {
    keeper_.reset();
    keeper_.emplace("door", place_.listener(), [](const vmm::Error&) {});
    const auto call = place_.call(hello_of(kOurs));
    ASSERT_EQ(reason(call), "welcomed");
    ASSERT_EQ(reason(place_.call(hello_of(kOurs, LinkRole::kStream, 1))), "welcomed");
  }
}

TEST_F(Door, LetsNoStreamInBeforeItsSource) {
  const auto stream = place_.call(hello_of(kOurs, LinkRole::kStream, 1));
  EXPECT_NE(reason(stream).find("belongs to no migration that arrives here"), std::string::npos) << reason(stream);
}

TEST_F(Door, HandsOverWhoDialsAgainWithTheRightId) {
  const auto call = let_in();
  const auto early = place_.call(hello_of(kOurs, LinkRole::kAgain));
  EXPECT_NE(reason(early).find("of which nothing was decided here"), std::string::npos) << reason(early);
  std::promise<std::unique_ptr<Call>> again;
  keeper_->hand_over_to([&](std::unique_ptr<Call> came) { again.set_value(std::move(came)); });
  const auto stranger = place_.call(hello_of(kOther, LinkRole::kAgain));
  EXPECT_NE(reason(stranger).find("asks for a migration that is not known here"), std::string::npos)
      << reason(stranger);
  const auto dialled = place_.call(hello_of(kOurs, LinkRole::kAgain));
  ASSERT_EQ(reason(dialled), "welcomed");
  const auto came = again.get_future().get();
  EXPECT_EQ(came->hello().role, LinkRole::kAgain);
  keeper_->hand_over_to(nullptr);
  EXPECT_NE(reason(place_.call(hello_of(kOurs, LinkRole::kAgain))), "welcomed");
}

// As a destination does with who says hello and hangs up before he has described a machine.
TEST_F(Door, LetsAnotherInWhenTheFirstWasOfNoUse) {
  const auto first = let_in();
  const auto stream = place_.call(hello_of(kOurs, LinkRole::kStream, 1));
  ASSERT_EQ(reason(stream), "welcomed");
  source_.reset();
  keeper_->let_another_in();
  Frame frame;
  EXPECT_FALSE((*stream)->reader().read(frame).has_value()) << "his streams go with him";
  EXPECT_NE(reason(place_.call(hello_of(kOurs, LinkRole::kStream, 2))).find("belongs to no migration"),
            std::string::npos);
  const auto second = place_.call(hello_of(kOther));
  ASSERT_EQ(reason(second), "welcomed");
  const auto came = keeper_->await_source({});
  ASSERT_EQ(reason(came), "welcomed");
  EXPECT_EQ((*came)->hello().id, hello_of(kOther).id);
  EXPECT_EQ(reason(place_.call(hello_of(kOther, LinkRole::kStream, 1))), "welcomed");
  keeper_->hand_over_to([](const std::unique_ptr<Call>&) {});
  EXPECT_NE(reason(place_.call(hello_of(kOurs, LinkRole::kAgain))).find("is not known here"), std::string::npos);
  EXPECT_EQ(reason(place_.call(hello_of(kOther, LinkRole::kAgain))), "welcomed");
}

// He hangs up in any moment of his own welcome or of his stream's: nothing of him is left for who comes then.
TEST_F(Door, KeepsNothingOfWhoHangsUp) {
  for (int round = 0; round < 100; ++round) {
    keeper_.reset();
    keeper_.emplace("door", place_.listener(), [](const vmm::Error&) {});
    auto stranger = place_.dial();
    auto stream = place_.dial();
    (void)FrameWriter(*stranger).write(FrameKind::kHello, encode(hello_of(kOther)));
    (void)FrameWriter(*stream).write(FrameKind::kHello, encode(hello_of(kOther, LinkRole::kStream, 1)));
    stranger.reset();
    stream.reset();
    auto waiting = std::async(std::launch::async, [&] {
      for (;;) {
        auto came = keeper_->await_source({});
        if (!came || (*came)->hello().id == hello_of(kOurs).id)
          return came;
        came->reset();
        keeper_->let_another_in();
      }
    });
    auto mine = place_.call(hello_of(kOurs));
    while (!mine) { // the stranger is in, for as long as it takes to notice
      ASSERT_NE(reason(mine).find("another migration is arriving"), std::string::npos) << reason(mine);
      mine = place_.call(hello_of(kOurs));
    }
    ASSERT_EQ(reason(waiting.get()), "welcomed");
    ASSERT_EQ(reason(place_.call(hello_of(kOurs, LinkRole::kStream, 1))), "welcomed");
  }
}

TEST_F(Door, EndsWhileSomebodyIsHeard) {
  const auto silent = place_.dial();
  const auto half = place_.dial();
  write(*half, "S");
  keeper_.reset();
}
TEST_F(Door, EndsWhileStrangersComeAndGo) {
  for (int round = 0; round < 200; ++round) {
    Place place;
    const Doorkeeper keeper("door", place.listener(), [](const vmm::Error&) {});
    const auto scanner = place.dial();
    if (round % 2 == 0)
      write(*scanner, "nonsense that is longer than the header of a frame");
  }
}

TEST_F(Door, CanBeLeft) {
  std::stop_source stop;
  auto waiting = std::async(std::launch::async, [&] { return keeper_->await_source(stop.get_token()); });
  stop.request_stop();
  EXPECT_EQ(reason(waiting.get()), "was cancelled");
  const auto late = place_.call(hello_of(kOurs)); // whom our signs of life would keep waiting for ever
  EXPECT_NE(reason(late).find("is late"), std::string::npos) << reason(late);
}

TEST_F(Door, CanBeLeftWhileStreamsAreWaitedFor) {
  const auto call = let_in();
  std::stop_source stop;
  auto streams = std::async(std::launch::async, [&] { return keeper_->await_streams(1, stop.get_token()); });
  stop.request_stop();
  EXPECT_EQ(streams.get().error().reason, "was cancelled");
}

TEST(DoorOfOneCaller, SaysThatNobodyElseCanCome) {
  Place place;
  auto caller = place.dial();
  class One final : public Listener {
  public:
    explicit One(std::unique_ptr<Link> link) : link_(std::move(link)) {}
    std::expected<std::unique_ptr<Link>, vmm::Error> accept(const std::stop_token&,
                                                            std::chrono::milliseconds) override {
      if (link_ == nullptr)
        return std::unexpected(vmm::Error{"test", "stdio:", "there is no other caller", vmm::Status::kFailed});
      return std::move(link_);
    }
    [[nodiscard]] bool takes_many() const noexcept override { return false; }
    [[nodiscard]] const std::string& place() const noexcept override { return place_; }

  private:
    std::unique_ptr<Link> link_;
    std::string place_ = "stdio:";
  } one(place.listener().accept({}, testing::kPatient).value());
  caller.reset();
  Doorkeeper keeper("door", one, [](const vmm::Error&) {});
  EXPECT_EQ(keeper.await_source({}).error().reason, "there is no other caller");
}

} // namespace
} // namespace stopvisor::migrate
