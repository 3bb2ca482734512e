// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/job_watch.h"

#include <csignal>
#include <ctime>
#include <string_view>

#include <nlohmann/json.hpp>

#include "tools/stopvisor/documents.h"
#include "tools/stopvisor/progress_line.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::json;
using vmm::Error;
using vmm::Status;

// Blocked as long as it lives, and asked for instead: a request must not break off half way, least of all the one
// that begins the job, whose number is needed to call it off.
class CancelSignals {
public:
  CancelSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  ~CancelSignals() {
    while (came()) { // too late: what came of the job is told all the same
    }
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  CancelSignals(const CancelSignals&) = delete;
  CancelSignals& operator=(const CancelSignals&) = delete;

  [[nodiscard]] bool came() const noexcept {
    const timespec at_once{};
    return ::sigtimedwait(&set_, nullptr, &at_once) > 0;
  }

private:
  sigset_t set_{};
  sigset_t before_{};
};

Error error_of(const std::string& operation, const Client& client, const Json& job) {
  const Json& error = job.at("error");
  std::string object = client.vm_name();
  if (const auto inner = error.value("object", ""); !inner.empty() && inner != object)
    object += ": " + inner;
  return {operation, std::move(object), error.value("reason", ""), Status{error.value("status", 1)}};
}

// RETURNS: its number.
std::expected<uint64_t, Error> begin_job(Client& client, const std::string& operation, std::string_view target,
                                         std::string_view body) {
  const auto answer = client.request("POST", target, body);
  if (!answer)
    return std::unexpected(answer.error());
  const Json started = Json::parse(*answer, nullptr, false);
  if (!started.is_object() || !started.contains("job") || !started["job"].is_number_unsigned())
    return std::unexpected(strange_answer(operation, client.vm_name()));
  return started["job"].get<uint64_t>();
}

std::expected<std::string, Error> watch_job(Client& client, const std::string& operation, uint64_t job,
                                            const CancelSignals& signals,
                                            const std::function<void(const std::string&)>& watch) {
  ProgressLine line;
  std::string phase;
  const std::string place = "/v1/jobs/" + std::to_string(job);
  for (;;) {
    if (signals.came())
      if (auto told = client.request("POST", place + "/cancel"); !told)
        return std::unexpected(told.error());
    const auto answer = client.request("GET", place + "?wait_ms=200");
    if (!answer)
      return std::unexpected(answer.error());
    try {
      const Json document = Json::parse(*answer);
      const auto state = document.at("state").get<std::string>();
      if (state == "done")
        return document.at("result").dump();
      if (state != "running")
        return std::unexpected(error_of(operation, client, document));
      line.show(operation + ": " + document.value("phase", ""), document.value("done_bytes", uint64_t{0}),
                document.value("total_bytes", uint64_t{0}));
      if (const auto now = document.value("phase", ""); watch && now != phase)
        watch(phase = now);
    } catch (const Json::exception&) {
      return std::unexpected(strange_answer(operation, client.vm_name()));
    }
  }
}

} // namespace

std::expected<std::string, Error> run_job(Client& client, const std::string& operation, std::string_view target,
                                          std::string_view body,
                                          const std::function<void(const std::string&)>& watch) {
  const CancelSignals signals;
  const auto job = begin_job(client, operation, target, body);
  if (!job)
    return std::unexpected(job.error());
  return watch_job(client, operation, *job, signals, watch);
}

} // namespace stopvisor::tools
