// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/documents.h"

#include <nlohmann/json.hpp>

#include "vmm/control/fields.h"
#include "vmm/units.h"

namespace stopvisor::patch {
namespace {

using Json = nlohmann::ordered_json;

Json reasons_document(const std::vector<Reason>& reasons) {
  Json list = Json::array();
  for (const Reason& reason : reasons)
    list.push_back({{"check", name_of(reason.check)}, {"text", reason.text}});
  return list;
}

Json cost_document(const Cost& cost) {
  Json document = {{"attempts", cost.attempts}, {"work_ns", cost.work_ns}, {"stop", nullptr}};
  if (cost.stop)
    document["stop"] = {{"sequence", cost.stop->sequence},
                        {"gather_ns", cost.stop->gather_ns},
                        {"hold_ns", cost.stop->hold_ns},
                        {"participants", cost.stop->participants}};
  return document;
}

Json author_document(const Author& author) {
  return {{"uid", author.uid}, {"pid", author.pid}};
}

int64_t milliseconds(std::chrono::system_clock::time_point at) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(at.time_since_epoch()).count();
}

Json window_document(const AppliedSite& site) {
  if (!site.window)
    return nullptr;
  return {{"begin", vmm::to_hex(site.window->begin)}, {"end", vmm::to_hex(site.window->end)}};
}

Json sites_document(const std::vector<AppliedSite>& sites) {
  Json list = Json::array();
  for (const AppliedSite& site : sites) {
    Json where = Json::array();
    for (const auto& [gpa, length] : site.where)
      where.push_back({{"gpa", vmm::to_hex(gpa.value)}, {"length", length}});
    list.push_back({{"site", site.number},
                    {"at", to_string(site.place)},
                    {"address", vmm::to_hex(site.address)},
                    {"kind", name_of(site.kind)},
                    {"window", window_document(site)},
                    {"memory", std::move(where)},
                    {"before", vmm::hex_of(site.before)},
                    {"written", vmm::hex_of(site.after)}});
  }
  return list;
}

} // namespace

Json document_of(const Outcome& outcome) {
  Json sites = Json::array();
  for (const SiteChange& site : outcome.sites)
    sites.push_back({{"site", site.name},
                     {"address", site.address},
                     {"kind", name_of(site.kind)},
                     {"before", vmm::hex_of(site.before)},
                     {"after", vmm::hex_of(site.after)}});
  return {{"patch", outcome.patch},
          {"replaced", outcome.replaced},
          {"sites", std::move(sites)},
          {"overruled", reasons_document(outcome.overruled)},
          {"cost", cost_document(outcome.cost)}};
}

Json summary_of(const Record& record, SteadyTime now) {
  size_t bytes = 0;
  for (const AppliedSite& site : record.sites)
    bytes += site.after.size();
  Json document = {{"patch", record.manifest.name},
                   {"version", record.manifest.version},
                   {"state", record.confirm_by ? "unconfirmed" : "applied"},
                   {"by", author_document(record.author)},
                   {"at_ms", milliseconds(record.at)},
                   {"sites", record.sites.size()},
                   {"bytes", bytes}};
  if (record.confirm_by)
    document["reverts_in_ms"] =
        std::chrono::duration_cast<std::chrono::milliseconds>(*record.confirm_by - now).count();
  if (!record.revert_problem.empty())
    document["revert_problem"] = record.revert_problem;
  Json forced = Json::array();
  for (const Check check : record.forced)
    forced.push_back(name_of(check));
  document["forced"] = std::move(forced);
  return document;
}

Json document_of(const Record& record, SteadyTime now) {
  Json document = summary_of(record, now);
  document["overruled"] = reasons_document(record.overruled);
  document["cost"] = cost_document(record.cost);
  document["sites"] = sites_document(record.sites);
  document["manifest"] = Json::parse(write_manifest(record.manifest));
  return document;
}

Json document_of(const Event& event) {
  return {{"what", event.what},
          {"patch", event.patch},
          {"by", author_document(event.author)},
          {"at_ms", milliseconds(event.at)},
          {"cost", cost_document(event.cost)}};
}

vmm::ApiReply reply_of(const Refusal& refusal) {
  vmm::ApiReply reply = vmm::error_reply(refusal.error);
  Json document = Json::parse(reply.body);
  document["reasons"] = reasons_document(refusal.reasons);
  document["cost"] = cost_document(refusal.cost);
  reply.body = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  return reply;
}

vmm::ApiReply reply_of(const Json& document) {
  vmm::ApiReply reply;
  reply.body = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  return reply;
}

} // namespace stopvisor::patch
