// SPDX-License-Identifier: Apache-2.0
// Work that a VM's process does for longer than a request should last: a snapshot, a migration.
//
// A job belongs to the VM and not to the connection that asked for it: it goes on when the client is gone, any
// client can look at it, and cancel it. What it was lasts for a while after its end, so that who asks late still
// hears.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <expected>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/control/peer.h"
#include "vmm/error.h"
#include "vmm/progress.h"

namespace stopvisor::vmm {

using JobId = uint64_t; // from 1, in the order of their starts
using JobClock = std::chrono::steady_clock;

enum class JobState { kRunning, kDone, kFailed, kCancelled };

// What a job is, as of one moment.
struct JobView {
  JobId id = 0;
  std::string operation; // "snapshot create"
  std::string object;    // the directory
  Peer peer;
  JobState state = JobState::kRunning;
  std::string phase; // in a word or two, for people
  uint64_t done_bytes = 0;
  uint64_t total_bytes = 0; // 0: not known yet
  JobClock::time_point since;
  std::optional<JobClock::time_point> end;
  std::string result;         // of one that is done: a JSON document
  std::optional<Error> error; // of one that failed
};

// A job as its own work sees it. CONTEXT: the job's thread, but for progress and stop, which its helpers may use.
class JobHandle {
public:
  virtual ~JobHandle() = default;
  virtual void begin_phase(const char* phase) = 0;
  [[nodiscard]] virtual Progress& progress() noexcept = 0;
  [[nodiscard]] virtual std::stop_token stop() const noexcept = 0; // asked for: leave everything as it was
};

// RETURNS: a JSON document, what came of it.
using JobWork = std::function<std::expected<std::string, Error>(JobHandle&)>;

// CONTEXT: any thread but a job's.
class Jobs {
public:
  static constexpr size_t kMostAtOnce = 4;
  static constexpr size_t kMostKept = 32; // that have ended

  Jobs() = default;
  ~Jobs() { end_all(); }
  Jobs(const Jobs&) = delete;
  Jobs& operator=(const Jobs&) = delete;

  // Does `work` on a thread of its own. RETURNS: kBusy where kMostAtOnce run, kFailed where the host has no more
  // threads, or after end_all().
  [[nodiscard]] std::expected<JobId, Error> start(std::string operation, std::string object, Peer peer,
                                                  JobWork work);
  // Looks at a job, having waited until it has ended, or `until`. RETURNS: nothing where there is none.
  [[nodiscard]] std::optional<JobView> await(JobId id, JobClock::time_point until);
  [[nodiscard]] std::vector<JobView> list() const; // the oldest first
  // Waits until the last job of this kind has ended and somebody has seen that it did (by await()): for news that
  // would be lost with the VM. For `unwatched` at most, and until `watched` after somebody last looked at the job,
  // who will look again unless he is gone; for `watched` in all, and no longer once `stop` is asked for.
  void await_heard(std::string_view operation, JobClock::duration unwatched, JobClock::duration watched,
                   const std::stop_token& stop = {});
  // Asks a job to end, and leave everything as it was; one that is over in that moment stays what it is.
  // RETURNS: false where there is no such job.
  bool cancel(JobId id) noexcept;
  // Cancels all, waits for their ends, and takes no more. What they work on may go after that.
  void end_all() noexcept;

private:
  class Job;
  void run(Job& job, const JobWork& work) noexcept;
  [[nodiscard]] Job* find(JobId id) const noexcept;                            // under mutex_
  [[nodiscard]] const Job* last_of(std::string_view operation) const noexcept; // under mutex_
  void forget_old();                                                           // under mutex_

  mutable std::mutex mutex_; // a leaf
  std::condition_variable changed_;
  std::list<std::shared_ptr<Job>> jobs_; // this and the following under mutex_
  JobId last_id_ = 0;
  bool ending_ = false;
};

} // namespace stopvisor::vmm
