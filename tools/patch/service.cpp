// SPDX-License-Identifier: Apache-2.0
#include "tools/patch/service.h"

#include <utility>

#include <nlohmann/json.hpp>

#include "tools/patch/documents.h"
#include "tools/patch/options.h"
#include "vmm/control/fields.h"

namespace stopvisor::patch {
namespace {

using Json = nlohmann::ordered_json;
using vmm::ApiReply;
using vmm::ApiRequest;
using vmm::Error;
using vmm::Status;

ApiReply reply_to(const Result& result) {
  return result ? reply_of(document_of(*result)) : reply_of(result.error());
}

} // namespace

Service::Service(vmm::Vm& vm, vmm::Api& api) : guest_(vm, api.context().guest), engine_(guest_, clock_) {
  add_paths(api);
  engine_.tell_expiry_to([this] {
    const std::lock_guard guard(mutex_);
    told_ = true;
    changed_.notify_all();
  });
  watcher_ = std::thread([this] { watch_expiry(); });
}

Service::~Service() {
  {
    const std::lock_guard guard(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  watcher_.join();
}

void Service::add_paths(vmm::Api& api) {
  using Handler = ApiReply (Service::*)(const ApiRequest&);
  const auto add = [&](const char* method, const char* path, Handler handler) {
    api.add(method, path, [this, handler](const ApiRequest& request) { return (this->*handler)(request); });
  };
  const auto add_change = [&](const char* path, const char* operation,
                              Result (Engine::*what)(const Manifest&, const Options&)) {
    api.add("POST", path,
            [this, operation, what](const ApiRequest& request) { return make(request, operation, what); });
  };
  add_change("/v1/patch/check", "patch check", &Engine::check);
  add_change("/v1/patch/apply", "patch apply", &Engine::apply);
  add_change("/v1/patch/replace", "patch replace", &Engine::replace);
  add("POST", "/v1/patch/revert", &Service::revert);
  add("POST", "/v1/patch/verify", &Service::verify);
  add("POST", "/v1/patch/confirm", &Service::confirm);
  add("GET", "/v1/patches", &Service::list);
  add("GET", "/v1/patches/*", &Service::show);
}

ApiReply Service::make(const ApiRequest& request, const char* operation,
                       Result (Engine::*what)(const Manifest&, const Options&)) {
  auto fields = vmm::Fields::of_body(operation, request.body);
  if (!fields)
    return vmm::error_reply(fields.error());
  const auto text = fields->text("manifest");
  fields->require("manifest", text.has_value());
  // One that replaces others would have to bring them back.
  const auto options = read_options(operation, *fields, request.peer, what == &Engine::apply);
  if (!options)
    return vmm::error_reply(options.error());
  const auto manifest = read_manifest(operation, text.value_or(""));
  if (!manifest)
    return vmm::error_reply(manifest.error());
  return reply_to((engine_.*what)(*manifest, *options));
}

ApiReply Service::revert(const ApiRequest& request) {
  auto fields = vmm::Fields::of_body("patch revert", request.body);
  if (!fields)
    return vmm::error_reply(fields.error());
  const auto name = fields->text("name");
  fields->require("name", name.has_value());
  const auto options = read_options("patch revert", *fields, request.peer, false);
  if (!options)
    return vmm::error_reply(options.error());
  return reply_to(engine_.revert(name.value_or(""), *options));
}

ApiReply Service::verify(const ApiRequest& request) {
  auto fields = vmm::Fields::of_body("patch verify", request.body);
  if (!fields)
    return vmm::error_reply(fields.error());
  const auto name = fields->text("name");
  const auto options = read_options("patch verify", *fields, request.peer, false);
  if (!options)
    return vmm::error_reply(options.error());
  return reply_to(engine_.verify(name.value_or(""), *options));
}

ApiReply Service::confirm(const ApiRequest& request) {
  auto fields = vmm::Fields::of_body("patch confirm", request.body);
  if (!fields)
    return vmm::error_reply(fields.error());
  const auto given = fields->text("name");
  fields->require("name", given.has_value());
  if (auto fine = fields->finish(); !fine)
    return vmm::error_reply(fine.error());
  const std::string name = given.value_or("");
  if (auto confirmed = engine_.confirm(name, {request.peer.uid, request.peer.pid}); !confirmed)
    return vmm::error_reply(confirmed.error());
  return reply_of(Json{{"patch", name}, {"state", "applied"}});
}

ApiReply Service::list(const ApiRequest& request) {
  if (auto fine = vmm::Fields::of_query("patch list", request).finish(); !fine)
    return vmm::error_reply(fine.error());
  Json patches = Json::array();
  for (const Ledger::Entry& record : engine_.list())
    patches.push_back(summary_of(*record, clock_.now()));
  Json history = Json::array();
  for (const Event& event : engine_.ledger().history())
    history.push_back(document_of(event));
  return reply_of(Json{{"patches", std::move(patches)}, {"history", std::move(history)}});
}

ApiReply Service::show(const ApiRequest& request) {
  const std::string name(request.path.substr(request.path.rfind('/') + 1));
  if (auto fine = vmm::Fields::of_query("patch show", request).finish(); !fine)
    return vmm::error_reply(fine.error());
  const Ledger::Entry record = is_patch_name(name) ? engine_.find(name) : nullptr;
  if (record == nullptr)
    return vmm::error_reply(
        Error{"patch show", is_patch_name(name) ? name : "", "no such patch is applied", Status::kRefused});
  return reply_of(document_of(*record, clock_.now()));
}

void Service::watch_expiry() noexcept {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    told_ = false;
    lock.unlock();
    const auto next = engine_.next_expiry();
    if (next && *next <= clock_.now())
      engine_.expire(clock_.now());
    lock.lock();
    const auto again = [this] { return ending_ || told_; };
    if (!next)
      changed_.wait(lock, again);
    else if (*next > clock_.now())
      changed_.wait_until(lock, *next, again);
  }
}

} // namespace stopvisor::patch
