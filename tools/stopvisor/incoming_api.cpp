// SPDX-License-Identifier: Apache-2.0
#include "tools/stopvisor/incoming_api.h"

#include <unistd.h>

#include <utility>

#include <nlohmann/json.hpp>

#include "vmm/control/fields.h"

namespace stopvisor::tools {
namespace {

using Json = nlohmann::ordered_json;
using vmm::Error;
using vmm::Status;

vmm::ApiReply reply_of(const Json& document) {
  vmm::ApiReply reply;
  reply.body = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  return reply;
}

} // namespace

IncomingApi::IncomingApi(std::string name, std::string place, migrate::Destination& destination,
                         std::function<void()> end)
    : name_(std::move(name)), place_(std::move(place)), destination_(destination), end_(std::move(end)),
      since_(std::chrono::steady_clock::now()) {}

vmm::ApiReply IncomingApi::serve(const vmm::ApiRequest& request) {
  const migrate::Destination::View view = destination_.view();
  if (request.method == "GET" && request.path == "/v1/status") {
    if (auto fine = vmm::Fields::of_query("status", request).finish(); !fine)
      return vmm::error_reply(fine.error());
    const auto uptime = std::chrono::steady_clock::now() - since_;
    return reply_of({{"name", name_},
                     {"pid", ::getpid()},
                     {"state", "incoming"},
                     {"cpus", 0},
                     {"memory_bytes", 0},
                     {"uptime_ms", std::chrono::duration_cast<std::chrono::milliseconds>(uptime).count()},
                     {"holds", 0},
                     {"incoming",
                      {{"phase", migrate::name_of(view.phase)},
                       {"place", place_},
                       {"source", view.source.empty() ? Json(nullptr) : Json(view.source)},
                       {"vm", view.vm.empty() ? Json(nullptr) : Json(view.vm)},
                       {"id", view.id.empty() ? Json(nullptr) : Json(view.id)},
                       {"done_bytes", view.done_bytes}}}});
  }
  if (request.method == "POST" && request.path == "/v1/resume") {
    if (auto started = destination_.start_here(); !started)
      return vmm::error_reply(started.error());
    return reply_of(Json::object());
  }
  if (request.method == "POST" && request.path == "/v1/shutdown") {
    end_();
    return reply_of({{"asked", "end"}});
  }
  return vmm::error_reply(
      {"control request", name_,
       std::string("the guest is not here yet: it arrives by migration (") + migrate::name_of(view.phase) + ")",
       Status::kBusy});
}

} // namespace stopvisor::tools
