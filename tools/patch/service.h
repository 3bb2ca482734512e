// SPDX-License-Identifier: Apache-2.0
// Live patching of a VM over its control socket, and the clock that takes back what nobody confirms.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "tools/patch/engine.h"
#include "tools/patch/vm_guest.h"
#include "vmm/control/api.h"

namespace stopvisor::patch {

class Service {
public:
  // Adds its paths to `api`. Both must outlive the object, and the object the last client.
  // CONTEXT: before the first client can connect.
  Service(vmm::Vm& vm, vmm::Api& api);
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  [[nodiscard]] Engine& engine() noexcept { return engine_; }

private:
  void add_paths(vmm::Api& api);
  [[nodiscard]] vmm::ApiReply make(const vmm::ApiRequest& request, const char* operation,
                                   Result (Engine::*what)(const Manifest&, const Options&));
  [[nodiscard]] vmm::ApiReply revert(const vmm::ApiRequest& request);
  [[nodiscard]] vmm::ApiReply verify(const vmm::ApiRequest& request);
  [[nodiscard]] vmm::ApiReply confirm(const vmm::ApiRequest& request);
  [[nodiscard]] vmm::ApiReply list(const vmm::ApiRequest& request);
  [[nodiscard]] vmm::ApiReply show(const vmm::ApiRequest& request);
  void watch_expiry() noexcept;

  Clock clock_;
  VmGuest guest_;
  Engine engine_;
  std::mutex mutex_; // a leaf
  std::condition_variable changed_;
  bool ending_ = false; // under mutex_
  bool told_ = false;   // under mutex_: look at next_expiry() again
  std::thread watcher_;
};

} // namespace stopvisor::patch
