// SPDX-License-Identifier: Apache-2.0
// Jobs: listed, looked at or waited for, cancelled.
#include <charconv>

#include <nlohmann/json.hpp>

#include "vmm/control/endpoints.h"
#include "vmm/control/fields.h"

namespace stopvisor::vmm {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kLongestWaitMs = 10'000;

const char* name_of(JobState state) {
  switch (state) {
  case JobState::kRunning:
    return "running";
  case JobState::kDone:
    return "done";
  case JobState::kFailed:
    return "failed";
  case JobState::kCancelled:
    return "cancelled";
  }
  return "unknown";
}

Json document_of(const JobView& job) {
  const auto took = job.end.value_or(JobClock::now()) - job.since;
  Json document = {{"job", job.id},
                   {"operation", job.operation},
                   {"object", job.object},
                   {"pid", job.peer.pid},
                   {"uid", job.peer.uid},
                   {"state", name_of(job.state)},
                   {"phase", job.phase},
                   {"done_bytes", job.done_bytes},
                   {"total_bytes", job.total_bytes},
                   {"ms", std::chrono::duration_cast<std::chrono::milliseconds>(took).count()}};
  if (!job.result.empty())
    document["result"] = Json::parse(job.result, nullptr, false);
  if (job.error)
    document["error"] = {{"operation", job.error->operation},
                         {"object", job.error->object},
                         {"reason", job.error->reason},
                         {"status", int(job.error->status)},
                         {"message", job.error->message()}};
  return document;
}

ApiReply reply_of(const Json& document) {
  ApiReply reply;
  // replace: the name of a directory need not be UTF-8
  reply.body = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  return reply;
}

// The number in /v1/jobs/N and /v1/jobs/N/cancel; 0, which no job has, for anything else.
JobId job_of(std::string_view path) {
  static constexpr std::string_view kStart = "/v1/jobs/";
  path.remove_prefix(kStart.size());
  path = path.substr(0, path.find('/'));
  JobId id = 0;
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), id);
  return error == std::errc{} && end == path.data() + path.size() ? id : 0;
}

ApiReply no_such_job() {
  return error_reply({"job", "", "this VM has no such job, or it has ended long ago", Status::kUsage}, 404);
}

} // namespace

ApiReply serve_jobs(ApiContext& context, const ApiRequest& request) {
  if (auto fine = Fields::of_query("list jobs", request).finish(); !fine)
    return error_reply(fine.error());
  Json list = Json::array();
  for (const JobView& job : context.jobs.list())
    list.push_back(document_of(job));
  return reply_of({{"jobs", std::move(list)}});
}

ApiReply serve_job(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_query("job", request);
  const uint64_t wait_ms = fields.number("wait_ms", 0, kLongestWaitMs).value_or(0);
  if (auto fine = fields.finish(); !fine)
    return error_reply(fine.error());
  const auto job = context.jobs.await(job_of(request.path), JobClock::now() + std::chrono::milliseconds(wait_ms));
  return job ? reply_of(document_of(*job)) : no_such_job();
}

ApiReply serve_cancel_job(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_body("cancel job", request.body);
  if (!fields)
    return error_reply(fields.error());
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  const JobId id = job_of(request.path);
  if (!context.jobs.cancel(id))
    return no_such_job();
  const auto job = context.jobs.await(id, JobClock::now());
  return job ? reply_of(document_of(*job)) : no_such_job();
}

} // namespace stopvisor::vmm
