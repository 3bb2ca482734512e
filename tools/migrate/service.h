// SPDX-License-Identifier: Apache-2.0
// Migrations of a VM to elsewhere over its control socket: each is a job, and one at a time.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "tools/migrate/source.h"
#include "vmm/control/api.h"

namespace stopvisor::migrate {

class Service {
public:
  // Adds its paths to `api`. Both must outlive the object, and the object the last client. `add_state` is what
  // others want to have along (CONTEXT: under the switch's stop), `tell` is for the log (any thread). CONTEXT:
  // before the first client can connect.
  Service(vmm::Vm& vm, vmm::Api& api, std::function<void(std::vector<vmm::StateSection>&)> add_state,
          std::function<void(const std::string&)> tell);
  // Cancels what is under way, and waits for its end.
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  // Whoever watches a migration's job is to hear that it is done, though its VM has ended by that. CONTEXT: after
  // the VM's end, before the last client is sent away; blocks for some seconds, or until `stop` is asked for.
  void await_news_heard(const std::stop_token& stop);

private:
  [[nodiscard]] vmm::ApiReply begin(const vmm::ApiRequest& request);
  [[nodiscard]] vmm::ApiReply show(const vmm::ApiRequest& request);
  [[nodiscard]] vmm::ApiReply decide(const vmm::ApiRequest& request);
  [[nodiscard]] std::expected<std::string, vmm::Error> migrate(const SourceOptions& options, vmm::JobHandle& job);
  [[nodiscard]] std::shared_ptr<Source> current() const;

  vmm::Vm& vm_;
  vmm::ApiContext& context_;
  const std::function<void(std::vector<vmm::StateSection>&)> add_state_;
  const std::function<void(const std::string&)> tell_;
  mutable std::mutex mutex_;        // a leaf
  std::shared_ptr<Source> current_; // under mutex_: the last one
};

} // namespace stopvisor::migrate
