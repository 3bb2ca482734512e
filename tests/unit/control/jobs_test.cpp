// SPDX-License-Identifier: Apache-2.0
// Jobs: looked at from outside, cancelled, and ended with what they work on.
#include "vmm/control/jobs.h"

#include <gtest/gtest.h>

#include <array>
#include <future>
#include <utility>

namespace stopvisor::vmm {
namespace {

using std::chrono::seconds;

constexpr Peer kPeer{7, 1000};
constexpr seconds kLimit{60}; // for what must happen

JobClock::time_point soon() {
  return JobClock::now() + kLimit;
}

// A job that waits until it is told to go on, and says when it has begun.
class Step {
public:
  JobWork work(std::expected<std::string, Error> result = "{}") {
    return [this, result = std::move(result)](JobHandle& job) {
      job.begin_phase("waiting");
      job.progress().total_bytes = 10;
      job.progress().done_bytes = 4;
      begun_.set_value();
      gone_on_.wait();
      return job.stop().stop_requested() ? std::unexpected(Error{"test", "x", "was cancelled"}) : result;
    };
  }
  void await_begin() { ASSERT_EQ(begun_.get_future().wait_for(kLimit), std::future_status::ready); }
  void go_on() { go_.set_value(); }

private:
  std::promise<void> begun_, go_;
  std::shared_future<void> gone_on_ = go_.get_future().share();
};

TEST(Jobs, ShowHowFarTheyAreAndWhatCameOfThem) {
  Jobs jobs;
  Step step;
  const auto id = jobs.start("make", "it", kPeer, step.work(R"({"good":1})"));
  ASSERT_TRUE(id.has_value());
  step.await_begin();
  auto view = jobs.await(*id, JobClock::now());
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->state, JobState::kRunning);
  EXPECT_EQ(view->operation + " " + view->object + " " + view->phase, "make it waiting");
  EXPECT_EQ(view->peer.pid, kPeer.pid);
  EXPECT_EQ(view->done_bytes, 4U);
  EXPECT_EQ(view->total_bytes, 10U);
  step.go_on();
  view = jobs.await(*id, soon());
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->state, JobState::kDone);
  EXPECT_EQ(view->result, R"({"good":1})");
  EXPECT_TRUE(view->end.has_value());
}

TEST(Jobs, ThatFailSayWhy) {
  Jobs jobs;
  const auto id = jobs.start("make", "it", kPeer, [](JobHandle&) -> std::expected<std::string, Error> {
    return std::unexpected(Error{"make", "it", "no", Status::kRefused});
  });
  ASSERT_TRUE(id.has_value());
  const auto view = jobs.await(*id, soon());
  ASSERT_TRUE(view && view->error);
  EXPECT_EQ(view->state, JobState::kFailed);
  EXPECT_EQ(view->error->status, Status::kRefused);
}

TEST(Jobs, AreCancelledWhereTheyHearOfIt) {
  Jobs jobs;
  Step step;
  const auto id = jobs.start("make", "it", kPeer, step.work());
  ASSERT_TRUE(id.has_value());
  step.await_begin();
  EXPECT_TRUE(jobs.cancel(*id));
  step.go_on();
  const auto view = jobs.await(*id, soon());
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->state, JobState::kCancelled);
}

// Cancelled too late: what is done is done.
TEST(Jobs, ThatAreDoneCannotBeCancelled) {
  Jobs jobs;
  const auto id = jobs.start("make", "it", kPeer, [](JobHandle&) { return std::string("{}"); });
  ASSERT_TRUE(id.has_value());
  ASSERT_EQ(jobs.await(*id, soon())->state, JobState::kDone);
  EXPECT_TRUE(jobs.cancel(*id));
  EXPECT_EQ(jobs.await(*id, soon())->state, JobState::kDone);
}

TEST(Jobs, AreAFewAtATime) {
  Jobs jobs;
  std::array<Step, Jobs::kMostAtOnce> steps;
  for (Step& step : steps)
    ASSERT_TRUE(jobs.start("make", "it", kPeer, step.work()).has_value());
  Step more;
  const auto refused = jobs.start("make", "it", kPeer, more.work());
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().status, Status::kBusy);
  for (Step& step : steps)
    step.go_on();
  for (const JobView& job : jobs.list())
    EXPECT_EQ(jobs.await(job.id, soon())->state, JobState::kDone);
  EXPECT_TRUE(jobs.start("make", "it", kPeer, [](JobHandle&) { return std::string("{}"); }).has_value());
}

TEST(Jobs, AreForgottenTheOldestFirst) {
  Jobs jobs;
  for (JobId id = 1; id <= Jobs::kMostKept + 5; ++id) {
    ASSERT_EQ(jobs.start("make", "it", kPeer, [](JobHandle&) { return std::string("{}"); }), id);
    ASSERT_EQ(jobs.await(id, soon())->state, JobState::kDone);
  }
  EXPECT_EQ(jobs.list().size(), Jobs::kMostKept);
  EXPECT_FALSE(jobs.await(1, JobClock::now()).has_value());
  EXPECT_FALSE(jobs.cancel(1));
  EXPECT_TRUE(jobs.await(Jobs::kMostKept + 5, JobClock::now()).has_value());
}

// A VM that ends with the job's news waits for who watches it, and not for long for anybody else.
TEST(Jobs, AreHeardOfByWhoWatchesThem) {
  Jobs jobs;
  jobs.await_heard("make", kLimit, kLimit); // there is none
  Step step;
  const auto id = jobs.start("make", "it", kPeer, step.work());
  ASSERT_TRUE(id.has_value());
  step.await_begin();
  jobs.await_heard("make", seconds(0), kLimit); // nobody has looked
  ASSERT_EQ(jobs.await(*id, JobClock::now())->state, JobState::kRunning);
  jobs.await_heard("make", seconds(0), seconds(0)); // he has been gone for long
  std::stop_source stop;
  stop.request_stop();
  jobs.await_heard("make", kLimit, kLimit, stop.get_token()); // nor where the process is to end
  auto heard = std::async(std::launch::async, [&] { jobs.await_heard("make", seconds(0), kLimit); });
  EXPECT_EQ(heard.wait_for(seconds(0)), std::future_status::timeout);
  step.go_on();
  EXPECT_EQ(jobs.await(*id, soon())->state, JobState::kDone);
  EXPECT_EQ(heard.wait_for(kLimit / 2), std::future_status::ready); // he has heard
  jobs.await_heard("make", kLimit, kLimit);
}

TEST(Jobs, EndWithWhatTheyWorkOn) {
  Jobs jobs;
  std::promise<void> begun;
  bool over = false;
  const auto id = jobs.start("make", "it", kPeer, [&](JobHandle& job) -> std::expected<std::string, Error> {
    std::promise<void> stopped;
    const std::stop_callback wake(job.stop(), [&] { stopped.set_value(); });
    begun.set_value();
    stopped.get_future().wait();
    over = true;
    return std::unexpected(Error{"make", "it", "was cancelled"});
  });
  ASSERT_TRUE(id.has_value());
  begun.get_future().wait();
  jobs.end_all();
  EXPECT_TRUE(over);
  EXPECT_FALSE(jobs.start("make", "it", kPeer, [](JobHandle&) { return std::string("{}"); }).has_value());
  EXPECT_EQ(jobs.await(*id, soon())->state, JobState::kCancelled);
}

} // namespace
} // namespace stopvisor::vmm
