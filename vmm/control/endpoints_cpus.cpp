// SPDX-License-Identifier: Apache-2.0
// vCPUs that come and go: listed, added, taken offline, brought online.
#include <charconv>

#include <nlohmann/json.hpp>

#include "vmm/control/endpoints.h"
#include "vmm/control/fields.h"

namespace stopvisor::vmm {
namespace {

using Json = nlohmann::ordered_json;

ApiReply reply_of(const Json& document) {
  ApiReply reply;
  reply.body = document.dump();
  return reply;
}

ApiReply change_reply(const Vm& vm, uint32_t cpu, const Json& more = Json::object()) {
  Json document = {{"cpu", cpu}, {"state", name_of(vm.vcpu_status(cpu).presence)}};
  document.update(more);
  return reply_of(document);
}

// The number in /v1/cpus/N/...
std::expected<uint32_t, Error> cpu_of(const char* operation, std::string_view path) {
  static constexpr std::string_view kStart = "/v1/cpus/";
  path.remove_prefix(kStart.size());
  path = path.substr(0, path.find('/'));
  uint32_t cpu = 0;
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), cpu);
  if (error != std::errc{} || end != path.data() + path.size())
    return std::unexpected(Error{operation, "", "the path must have the number of a vCPU", Status::kUsage});
  return cpu;
}

} // namespace

const char* name_of(VcpuPresence presence) noexcept {
  switch (presence) {
  case VcpuPresence::kOnline:
    return "online";
  case VcpuPresence::kLeaving:
    return "leaving";
  case VcpuPresence::kOffline:
    return "offline";
  }
  return "unknown";
}

ApiReply serve_cpus(ApiContext& context, const ApiRequest& request) {
  if (auto fine = Fields::of_query("list vCPUs", request).finish(); !fine)
    return error_reply(fine.error());
  Json list = Json::array();
  for (uint32_t cpu = 0; cpu < context.vm.cpu_count(); ++cpu) {
    const VcpuStatus status = context.vm.vcpu_status(cpu);
    list.push_back({{"cpu", cpu}, {"state", name_of(status.presence)}, {"tid", status.thread_id}});
  }
  return reply_of({{"max_cpus", context.vm.config().max_cpus}, {"cpus", std::move(list)}});
}

ApiReply serve_add_cpu(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_body("add vCPU", request.body);
  if (!fields)
    return error_reply(fields.error());
  const auto deadline = fields->deadline();
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  const auto cpu = context.vm.add_cpu(deadline);
  return cpu ? change_reply(context.vm, *cpu) : error_reply(cpu.error());
}

ApiReply serve_offline_cpu(ApiContext& context, const ApiRequest& request) {
  static constexpr const char* kOperation = "offline vCPU";
  const auto cpu = cpu_of(kOperation, request.path);
  if (!cpu)
    return error_reply(cpu.error());
  auto fields = Fields::of_body(kOperation, request.body);
  if (!fields)
    return error_reply(fields.error());
  const auto deadline = fields->deadline();
  const bool force = fields->flag("force").value_or(false);
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  const auto forced = context.vm.offline_cpu(*cpu, deadline, force);
  return forced ? change_reply(context.vm, *cpu, {{"forced", *forced}}) : error_reply(forced.error());
}

ApiReply serve_online_cpu(ApiContext& context, const ApiRequest& request) {
  static constexpr const char* kOperation = "online vCPU";
  const auto cpu = cpu_of(kOperation, request.path);
  if (!cpu)
    return error_reply(cpu.error());
  auto fields = Fields::of_body(kOperation, request.body);
  if (!fields)
    return error_reply(fields.error());
  const auto deadline = fields->deadline();
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  if (auto online = context.vm.online_cpu(*cpu, deadline); !online)
    return error_reply(online.error());
  return change_reply(context.vm, *cpu);
}

} // namespace stopvisor::vmm
