// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/jobs.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <utility>

namespace stopvisor::vmm {

class Jobs::Job final : public JobHandle {
public:
  Job(Jobs& jobs, JobId id, std::string operation, std::string object, Peer peer) : jobs_(jobs) {
    view_.id = id;
    view_.operation = std::move(operation);
    view_.object = std::move(object);
    view_.peer = peer;
    view_.phase = "starting";
    view_.since = JobClock::now();
  }

  void begin_phase(const char* phase) override {
    const std::lock_guard guard(jobs_.mutex_);
    view_.phase = phase;
  }
  [[nodiscard]] Progress& progress() noexcept override { return progress_; }
  [[nodiscard]] std::stop_token stop() const noexcept override { return stop_.get_token(); }

  void cancel() noexcept { stop_.request_stop(); }

  [[nodiscard]] JobId id() const noexcept { return view_.id; }
  [[nodiscard]] bool is_a(std::string_view operation) const noexcept { return view_.operation == operation; }

  // CONTEXT, the rest: under the jobs' mutex.
  [[nodiscard]] bool over() const noexcept { return view_.state != JobState::kRunning; }
  void end(std::expected<std::string, Error> result) {
    view_.end = JobClock::now();
    if (result) {
      view_.state = JobState::kDone;
      view_.result = std::move(*result);
    } else {
      view_.state = stop_.stop_requested() ? JobState::kCancelled : JobState::kFailed;
      view_.error = std::move(result.error());
    }
  }
  [[nodiscard]] JobView view() const {
    JobView view = view_;
    view.done_bytes = progress_.done_bytes.load(std::memory_order_relaxed); // figures for people
    view.total_bytes = progress_.total_bytes.load(std::memory_order_relaxed);
    return view;
  }

  // Under the jobs' mutex:
  bool heard = false;                            // somebody has seen that it is over
  std::optional<JobClock::time_point> looked_at; // when await() was last asked for it, or told of it

  std::thread thread; // joined by whoever takes the job from the list, or by end_all()

private:
  Jobs& jobs_;
  JobView view_;
  Progress progress_;
  std::stop_source stop_;
};

std::expected<JobId, Error> Jobs::start(std::string operation, std::string object, Peer peer, JobWork work) {
  const std::lock_guard guard(mutex_);
  if (ending_)
    return std::unexpected(Error{std::move(operation), std::move(object), "the VM ends", Status::kFailed});
  const auto running = std::ranges::count_if(jobs_, [](const auto& job) { return !job->over(); });
  if (static_cast<size_t>(running) >= kMostAtOnce)
    return std::unexpected(Error{std::move(operation), std::move(object),
                                 std::to_string(kMostAtOnce) + " jobs run in this VM already", Status::kBusy});
  forget_old();
  auto job = std::make_shared<Job>(*this, last_id_ + 1, operation, object, peer);
  try {
    job->thread = std::thread([this, job, work = std::move(work)] { run(*job, work); });
  } catch (const std::system_error& error) {
    return std::unexpected(Error{std::move(operation), std::move(object), error.what(), Status::kFailed});
  }
  jobs_.push_back(std::move(job));
  return ++last_id_;
}

// CONTEXT: the job's thread.
void Jobs::run(Job& job, const JobWork& work) noexcept {
  auto result = work(job);
  const std::lock_guard guard(mutex_);
  job.end(std::move(result));
  changed_.notify_all();
}

void Jobs::forget_old() {
  auto ended = std::ranges::count_if(jobs_, [](const auto& job) { return job->over(); });
  for (auto job = jobs_.begin(); job != jobs_.end() && static_cast<size_t>(ended) >= kMostKept;) {
    if (!(*job)->over()) {
      ++job;
      continue;
    }
    (*job)->thread.join(); // it has let go of the mutex for the last time, or is about to return
    job = jobs_.erase(job);
    --ended;
  }
}

Jobs::Job* Jobs::find(JobId id) const noexcept {
  const auto job = std::ranges::find_if(jobs_, [&](const auto& one) { return one->id() == id; });
  return job == jobs_.end() ? nullptr : job->get();
}

std::optional<JobView> Jobs::await(JobId id, JobClock::time_point until) {
  std::unique_lock lock(mutex_);
  // Found anew after each wait: it may have been forgotten meanwhile.
  for (;;) {
    Job* const job = find(id);
    if (job == nullptr)
      return std::nullopt;
    job->looked_at = JobClock::now();
    if (job->over() || ending_ || changed_.wait_until(lock, until) == std::cv_status::timeout)
      break;
  }
  Job* const job = find(id);
  if (job == nullptr)
    return std::nullopt;
  if (job->over() && !std::exchange(job->heard, true))
    changed_.notify_all(); // await_heard()
  job->looked_at = JobClock::now();
  return job->view();
}

const Jobs::Job* Jobs::last_of(std::string_view operation) const noexcept {
  for (auto job = jobs_.rbegin(); job != jobs_.rend(); ++job)
    if ((*job)->is_a(operation))
      return job->get();
  return nullptr;
}

void Jobs::await_heard(std::string_view operation, JobClock::duration unwatched, JobClock::duration watched,
                       const std::stop_token& stop) {
  const auto begin = JobClock::now();
  const std::stop_callback wake(stop, [this] {
    const std::lock_guard guard(mutex_); // not between the look at `stop` and the wait
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  // Found anew after each wait: it may have been looked at, or forgotten, meanwhile.
  while (!stop.stop_requested()) {
    const Job* const job = last_of(operation);
    if (job == nullptr || job->heard)
      return;
    auto until = begin + unwatched;
    if (job->looked_at)
      until = std::max(until, std::min(begin, *job->looked_at) + watched);
    if (JobClock::now() >= until)
      return;
    (void)changed_.wait_until(lock, until);
  }
}

std::vector<JobView> Jobs::list() const {
  const std::lock_guard guard(mutex_);
  std::vector<JobView> views;
  for (const auto& job : jobs_)
    views.push_back(job->view());
  return views;
}

bool Jobs::cancel(JobId id) noexcept {
  const std::lock_guard guard(mutex_);
  Job* const job = find(id);
  if (job != nullptr)
    job->cancel();
  return job != nullptr;
}

void Jobs::end_all() noexcept {
  std::list<std::shared_ptr<Job>> all;
  {
    const std::lock_guard guard(mutex_);
    ending_ = true; // nobody starts one any more, and nobody else takes one from the list
    all = jobs_;
    changed_.notify_all();
  }
  for (const auto& job : all)
    job->cancel();
  for (const auto& job : all)
    if (job->thread.joinable())
      job->thread.join();
}

} // namespace stopvisor::vmm
