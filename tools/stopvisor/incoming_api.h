// SPDX-License-Identifier: Apache-2.0
// What a VM's control socket answers before its guest has arrived, and the switch to what it answers afterwards.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <string>

#include "tools/migrate/destination.h"
#include "vmm/control/request.h"

namespace stopvisor::tools {

// GET /v1/status, POST /v1/resume (of a guest whose source was lost) and POST /v1/shutdown; everything else is
// busy.
class IncomingApi final : public vmm::ApiHandler {
public:
  // `destination` outlives the object; `place` is where a source is waited for, `end` ends the process.
  // CONTEXT of `end`: a connection's thread; it must not block.
  IncomingApi(std::string name, std::string place, migrate::Destination& destination, std::function<void()> end);

  [[nodiscard]] vmm::ApiReply serve(const vmm::ApiRequest& request) override;
  void connection_ended(vmm::ConnectionId /*connection*/) noexcept override {}

private:
  const std::string name_;
  const std::string place_;
  migrate::Destination& destination_;
  const std::function<void()> end_;
  const std::chrono::steady_clock::time_point since_;
};

// Hands requests to one handler, and from some moment on to another. Both outlive it.
class SwitchedApi final : public vmm::ApiHandler {
public:
  explicit SwitchedApi(vmm::ApiHandler& first) noexcept : now_(&first) {}
  // CONTEXT: any thread, once. A request that is being served is still the first one's.
  void switch_to(vmm::ApiHandler& next) noexcept { now_.store(&next, std::memory_order_release); } // A1

  [[nodiscard]] vmm::ApiReply serve(const vmm::ApiRequest& request) override { return now().serve(request); }
  // The first one has nothing that ends with a connection.
  void connection_ended(vmm::ConnectionId connection) noexcept override { now().connection_ended(connection); }

private:
  [[nodiscard]] vmm::ApiHandler& now() const noexcept { return *now_.load(std::memory_order_acquire); } // A1
  std::atomic<vmm::ApiHandler*> now_;
};

} // namespace stopvisor::tools
