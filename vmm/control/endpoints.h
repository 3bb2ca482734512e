// SPDX-License-Identifier: Apache-2.0
// The functions behind the API's paths, one each; api.cpp has the table.
#pragma once

#include <atomic>
#include <chrono>

#include "vmm/control/guest_knowledge.h"
#include "vmm/control/holds.h"
#include "vmm/control/jobs.h"
#include "vmm/control/request.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

// What every endpoint works on.
struct ApiContext {
  Vm& vm;
  Holds& holds;
  GuestKnowledge& guest;
  Jobs& jobs;
  std::chrono::steady_clock::time_point started;
  std::atomic<uint32_t> consoles{0}; // clients attached to the console; each takes a connection and a thread
};

// "online", "leaving" or "offline".
[[nodiscard]] const char* name_of(VcpuPresence presence) noexcept;

// CONTEXT, all of them: connection threads, several at once; those with a deadline block.
[[nodiscard]] ApiReply serve_status(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_console(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_device_tree(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_stop_report(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_shutdown(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_pause(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_resume(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_lease(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_end_of_lease(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_cpus(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_add_cpu(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_offline_cpu(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_online_cpu(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_registers(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_guest(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_peek(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_poke(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_jobs(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_job(ApiContext& context, const ApiRequest& request);
[[nodiscard]] ApiReply serve_cancel_job(ApiContext& context, const ApiRequest& request);

} // namespace stopvisor::vmm
