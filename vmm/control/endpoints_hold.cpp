// SPDX-License-Identifier: Apache-2.0
// Pause, resume and leases.
#include <charconv>

#include <nlohmann/json.hpp>

#include "vmm/control/endpoints.h"
#include "vmm/control/fields.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kLongestLeaseMs = 24ULL * 3600 * 1000;

ApiReply holds_reply(ApiContext& context) {
  ApiReply reply;
  reply.body = "{\"holds\":" + std::to_string(context.vm.stops().holds()) + "}";
  return reply;
}

} // namespace

ApiReply serve_pause(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_body("pause", request.body);
  if (!fields)
    return error_reply(fields.error());
  const auto deadline = fields->deadline();
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  const auto pause = context.holds.pause(request.peer, deadline);
  if (!pause)
    return error_reply(pause.error());
  ApiReply reply = holds_reply(context);
  reply.undo = [&holds = context.holds, id = *pause] { holds.take_back(id); };
  return reply;
}

ApiReply serve_resume(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_body("resume", request.body);
  if (!fields)
    return error_reply(fields.error());
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  if (auto resumed = context.holds.resume(); !resumed)
    return error_reply(resumed.error());
  return holds_reply(context);
}

ApiReply serve_lease(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_body("hold", request.body);
  if (!fields)
    return error_reply(fields.error());
  const auto max_ms = fields->number("max_ms", 1, kLongestLeaseMs);
  const auto deadline = fields->deadline();
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  std::optional<std::chrono::milliseconds> max;
  if (max_ms)
    max.emplace(*max_ms);
  const auto lease = context.holds.lease(request.connection, request.peer, deadline, max);
  if (!lease)
    return error_reply(lease.error());
  ApiReply reply;
  reply.body = "{\"id\":" + std::to_string(*lease) + "}";
  return reply;
}

ApiReply serve_end_of_lease(ApiContext& context, const ApiRequest& request) {
  const std::string_view text = request.path.substr(request.path.rfind('/') + 1);
  HoldId id = 0;
  const auto [end, parse_error] = std::from_chars(text.data(), text.data() + text.size(), id);
  const bool is_number = parse_error == std::errc{} && end == text.data() + text.size();
  const auto ended = is_number ? context.holds.end_lease(request.connection, id) : std::nullopt;
  if (!ended)
    return error_reply({"hold", "", "this connection has no such lease", Status::kUsage}, 404);
  if (!*ended)
    return error_reply(ended->error());
  return holds_reply(context);
}

} // namespace stopvisor::vmm
