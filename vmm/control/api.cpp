// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/api.h"

#include <unistd.h>

#include <array>

#include "vmm/control/endpoints.h"

namespace stopvisor::vmm {
namespace {

struct Endpoint {
  std::string_view method;
  std::string_view path; // a segment "*" stands for any one
  ApiReply (*serve)(ApiContext&, const ApiRequest&);
};

constexpr std::array kEndpoints{
    Endpoint{"GET", "/v1/status", serve_status},
    Endpoint{"POST", "/v1/pause", serve_pause},
    Endpoint{"POST", "/v1/resume", serve_resume},
    Endpoint{"POST", "/v1/lease", serve_lease},
    Endpoint{"DELETE", "/v1/lease/*", serve_end_of_lease},
    Endpoint{"GET", "/v1/cpus", serve_cpus},
    Endpoint{"POST", "/v1/cpus", serve_add_cpu},
    Endpoint{"POST", "/v1/cpus/*/offline", serve_offline_cpu},
    Endpoint{"POST", "/v1/cpus/*/online", serve_online_cpu},
    Endpoint{"GET", "/v1/regs", serve_registers},
    Endpoint{"GET", "/v1/guest", serve_guest},
    Endpoint{"POST", "/v1/peek", serve_peek},
    Endpoint{"POST", "/v1/poke", serve_poke},
    Endpoint{"GET", "/v1/jobs", serve_jobs},
    Endpoint{"GET", "/v1/jobs/*", serve_job},
    Endpoint{"POST", "/v1/jobs/*/cancel", serve_cancel_job},
    Endpoint{"GET", "/v1/stop-report", serve_stop_report},
    Endpoint{"GET", "/v1/console", serve_console},
    Endpoint{"GET", "/v1/dtb", serve_device_tree},
    Endpoint{"POST", "/v1/shutdown", serve_shutdown},
};

bool matches(std::string_view pattern, std::string_view path) {
  for (;;) {
    const std::string_view wanted = pattern.substr(0, pattern.find('/'));
    const std::string_view found = path.substr(0, path.find('/'));
    if (wanted == "*" ? found.empty() : wanted != found)
      return false;
    if (wanted.size() == pattern.size() || found.size() == path.size())
      return wanted.size() == pattern.size() && found.size() == path.size();
    pattern.remove_prefix(wanted.size() + 1);
    path.remove_prefix(found.size() + 1);
  }
}

std::string printable(std::string_view text) {
  std::string line;
  for (const char c : text.substr(0, 60))
    line += c > ' ' && c < 0x7f ? c : '?';
  return line;
}

class VmHolds final : public HoldTarget {
public:
  explicit VmHolds(Vm& vm) : vm_(vm) {}
  std::expected<void, Error> acquire(const char* operation, HoldClock::time_point deadline) override {
    auto held = vm_.stops().acquire_hold({.deadline = deadline});
    if (!held)
      return std::unexpected(vm_.explain(operation, held.error()));
    return {};
  }
  void release() noexcept override { (void)vm_.stops().release_hold(); } // false: the VM has ended

private:
  Vm& vm_;
};

} // namespace

struct Api::Parts {
  explicit Parts(Vm& vm)
      : target(vm), holds(target), guest(vm),
        context{vm, holds, guest, jobs, std::chrono::steady_clock::now(), {}} {}
  VmHolds target;
  Holds holds;
  GuestKnowledge guest;
  Jobs jobs;
  ApiContext context;
  struct Added {
    std::string method;
    std::string path;
    std::function<ApiReply(const ApiRequest&)> serve;
  };
  std::vector<Added> added; // fixed once clients connect
};

Api::Api(Vm& vm) : parts_(std::make_unique<Parts>(vm)) {
  if (vm.config().start_held)
    parts_->holds.adopt_pause({::getpid(), ::geteuid()});
}

Api::~Api() = default;

void Api::add(std::string method, std::string path, std::function<ApiReply(const ApiRequest&)> serve) {
  parts_->added.push_back({std::move(method), std::move(path), std::move(serve)});
}

ApiContext& Api::context() noexcept {
  return parts_->context;
}

ApiReply Api::serve(const ApiRequest& request) {
  bool known = false;
  for (const Endpoint& endpoint : kEndpoints) {
    if (!matches(endpoint.path, request.path))
      continue;
    known = true;
    if (endpoint.method == request.method)
      return endpoint.serve(parts_->context, request);
  }
  for (const Parts::Added& endpoint : parts_->added) {
    if (!matches(endpoint.path, request.path))
      continue;
    known = true;
    if (endpoint.method == request.method)
      return endpoint.serve(request);
  }
  Error error{"control request", printable(request.path), "no such path", Status::kUsage};
  if (!known)
    return error_reply(error, 404);
  error.reason = "takes no " + printable(request.method);
  return error_reply(error, 405);
}

void Api::connection_ended(ConnectionId connection) noexcept {
  parts_->holds.connection_ended(connection);
}

} // namespace stopvisor::vmm
