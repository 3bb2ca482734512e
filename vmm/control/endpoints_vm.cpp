// SPDX-License-Identifier: Apache-2.0
// Status, device tree, stop report and shutdown.
#include <unistd.h>

#include <cstring>

#include <nlohmann/json.hpp>

#include "vmm/control/endpoints.h"
#include "vmm/control/fields.h"

namespace stopvisor::vmm {
namespace {

using Json = nlohmann::ordered_json;

const char* name_of(VmState state) {
  switch (state) {
  case VmState::kCreated:
    return "created";
  case VmState::kRunning:
    return "running";
  case VmState::kHeld:
    return "held";
  case VmState::kEnded:
    return "ended";
  }
  return "unknown";
}

const char* name_of(stopper::StopEnd end) {
  switch (end) {
  case stopper::StopEnd::kNone:
    return "none";
  case stopper::StopEnd::kCompleted:
    return "completed";
  case stopper::StopEnd::kAborted:
    return "aborted";
  }
  return "unknown";
}

int64_t milliseconds_between(HoldClock::time_point from, HoldClock::time_point to) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(to - from).count();
}

Json holders_document(const Holds& holds) {
  Json list = Json::array();
  const auto now = HoldClock::now();
  for (const Hold& hold : holds.list()) {
    Json entry = {{"kind", hold.kind == Hold::Kind::kPause ? "pause" : "lease"},
                  {"pid", hold.peer.pid},
                  {"uid", hold.peer.uid},
                  {"held_ms", milliseconds_between(hold.since, now)}};
    if (hold.until)
      entry["left_ms"] = std::max<int64_t>(0, milliseconds_between(now, *hold.until));
    list.push_back(std::move(entry));
  }
  return list;
}

// Times after the request, in nanoseconds; null for what did not happen.
Json since(int64_t requested_ns, int64_t then_ns) {
  return then_ns == 0 ? Json(nullptr) : Json(then_ns - requested_ns);
}

constexpr uint32_t kNeverInGuest = UINT32_MAX; // as a vCPU thread says it (VcpuThread::kNoExit)

// KVM's exit reason; null where the participant is none that enters the guest, or has not been in it yet.
Json activity_document(const stopper::ParticipantReport& participant) {
  return participant.worker || participant.activity == kNeverInGuest ? Json(nullptr) : Json(participant.activity);
}

Json report_summary(const stopper::StopReport& report) {
  if (report.end == stopper::StopEnd::kNone)
    return nullptr;
  return {{"sequence", report.sequence},
          {"end", name_of(report.end)},
          {"shared", report.shared},
          {"rekicks", report.rekicks},
          {"lift_refused", report.lift_refused},
          {"all_held_ns", since(report.requested_ns, report.all_held_ns)},
          {"hold_ns", report.left_ns == 0 ? Json(nullptr) : Json(report.hold_ns())},
          {"participants", report.participants.size()}};
}

Json vcpus_document(const Vm& vm) {
  Json list = Json::array();
  for (uint32_t cpu = 0; cpu < vm.cpu_count(); ++cpu) {
    const VcpuStatus status = vm.vcpu_status(cpu);
    list.push_back({{"cpu", cpu},
                    {"state", name_of(status.presence)},
                    {"tid", status.thread_id},
                    {"exits", status.exits},
                    {"last_exit", status.last_exit}});
  }
  return list;
}

Json workers_document(const Vm& vm) {
  Json list = Json::array();
  for (const WorkerStatus& status : vm.worker_status())
    list.push_back({{"worker", status.name}, {"tid", status.thread_id}, {"jobs", status.jobs_done}});
  return list;
}

Json devices_document(const Vm& vm) {
  Json list = Json::array();
  const auto text_or_null = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); };
  for (const DeviceStatus& status : vm.device_status()) {
    Json counters = Json::object();
    for (const DeviceCounter& counter : status.counters)
      counters[counter.name] = counter.value;
    list.push_back({{"device", status.name},
                    {"slot", status.slot},
                    {"driven", status.driven},
                    {"requests", status.requests},
                    {"broken", text_or_null(status.broken)},
                    {"trouble", text_or_null(status.trouble)},
                    {"counters", std::move(counters)}});
  }
  return list;
}

// A vCPU by its number, a device worker by its name.
Json participant_name(const Vm& vm, stopper::CpuId participant) {
  for (const WorkerStatus& status : vm.worker_status())
    if (status.participant == participant)
      return status.name;
  return participant;
}

Json doorbell_document(const DoorbellCounts& counts) {
  return {{"port_writes", counts.port_writes},
          {"port_reads", counts.port_reads},
          {"mmio_writes", counts.mmio_writes},
          {"mmio_reads", counts.mmio_reads},
          {"lost", counts.lost},
          {"doubled", counts.doubled}};
}

ApiReply document_reply(const Json& document) {
  ApiReply reply;
  reply.body = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  return reply;
}

// A request without fields.
std::expected<void, Error> nothing_asked(const char* operation, const ApiRequest& request) {
  return Fields::of_query(operation, request).finish();
}

} // namespace

ApiReply serve_status(ApiContext& context, const ApiRequest& request) {
  if (auto fine = nothing_asked("status", request); !fine)
    return error_reply(fine.error());
  Vm& vm = context.vm;
  const VmConfig& config = vm.config();
  Json document = {{"name", config.name},
                   {"pid", ::getpid()},
                   {"state", name_of(vm.state())},
                   {"cpus", vm.cpu_count()},
                   {"max_cpus", config.max_cpus},
                   {"memory_bytes", config.memory_bytes},
                   {"memory_backing", name_of(config.backing)},
                   {"kernel", config.kernel.empty() ? Json(nullptr) : Json(config.kernel)},
                   {"resets", vm.resets()},
                   {"last_reset_by", vm.last_reset_by().empty() ? Json(nullptr) : Json(vm.last_reset_by())},
                   {"panicked", vm.panicked()},
                   {"panics", vm.panics()},
                   {"ctrl_alt_dels", vm.ctrl_alt_dels()},
                   {"uptime_ms", milliseconds_between(context.started, HoldClock::now())},
                   {"holds", vm.stops().holds()}};
  document["holders"] = holders_document(context.holds);
  document["vcpus"] = vcpus_document(vm);
  document["workers"] = workers_document(vm);
  document["devices"] = devices_document(vm);
  document["doorbell"] = doorbell_document(vm.doorbell_counts());
  document["last_stop"] = report_summary(vm.stop_machine().last_report());
  return document_reply(document);
}

ApiReply serve_device_tree(ApiContext& context, const ApiRequest& request) {
  if (auto fine = nothing_asked("status", request); !fine)
    return error_reply(fine.error());
  const std::vector<std::byte> tree = context.vm.device_tree();
  ApiReply reply;
  reply.content_type = "application/octet-stream";
  reply.body.assign(reinterpret_cast<const char*>(tree.data()), tree.size());
  return reply;
}

ApiReply serve_stop_report(ApiContext& context, const ApiRequest& request) {
  if (auto fine = nothing_asked("stop report", request); !fine)
    return error_reply(fine.error());
  const stopper::StopReport report = context.vm.stop_machine().last_report();
  if (report.end == stopper::StopEnd::kNone)
    return error_reply({"stop report", context.vm.config().name, "nothing has been stopped yet", Status::kRefused});
  const int64_t asked = report.requested_ns;
  Json document = report_summary(report);
  document["begun_ns"] = since(asked, report.begun_ns);
  document["exit_ns"] = since(asked, report.exit_ns);
  document["left_ns"] = since(asked, report.left_ns);
  Json stragglers = Json::array();
  report.stragglers.for_each([&](stopper::CpuId cpu) { stragglers.push_back(participant_name(context.vm, cpu)); });
  document["stragglers"] = std::move(stragglers);
  Json list = Json::array();
  for (const stopper::ParticipantReport& participant : report.participants)
    list.push_back({{participant.worker ? "worker" : "cpu", participant_name(context.vm, participant.cpu)},
                    {"activity", activity_document(participant)},
                    {"kicked_ns", since(asked, participant.kicked_ns)},
                    {"out_ns", since(asked, participant.out_ns)},
                    {"held_ns", since(asked, participant.held_ns)},
                    {"ran_ns", since(asked, participant.ran_ns)},
                    {"released_ns", since(asked, participant.released_ns)},
                    {"result", participant.result},
                    {"lifted", participant.lifted}});
  document["participants"] = std::move(list);
  return document_reply(document);
}

ApiReply serve_shutdown(ApiContext& context, const ApiRequest& request) {
  auto fields = Fields::of_body("shutdown", request.body);
  if (!fields)
    return error_reply(fields.error());
  const bool now = fields->flag("now").value_or(false);
  const bool keys = fields->flag("ctrl_alt_del").value_or(false);
  if (auto fine = fields->finish(); !fine)
    return error_reply(fine.error());
  if (now && keys)
    return error_reply({"shutdown", "", "now and ctrl_alt_del exclude each other", Status::kUsage});
  if (keys) {
    if (auto pressed = context.vm.press_ctrl_alt_del(); !pressed)
      return error_reply(pressed.error());
  } else if (now) {
    context.vm.request_end({EndKind::kRequested, ""});
  } else if (auto pressed = context.vm.press_power_button(); !pressed) {
    return error_reply(pressed.error());
  }
  return document_reply({{"asked", now ? "end" : keys ? "ctrl-alt-del" : "power-button"}});
}

} // namespace stopvisor::vmm
