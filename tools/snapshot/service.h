// SPDX-License-Identifier: Apache-2.0
// Snapshots of a VM over its control socket: each is a job.
#pragma once

#include <functional>

#include "tools/snapshot/writer.h"
#include "vmm/control/api.h"

namespace stopvisor::snapshot {

class Service {
public:
  // What others want to have in each snapshot. CONTEXT of a call: under the snapshot's stop.
  using AddMore = std::function<void(Contents&)>;

  // Adds its paths to `api`. Both must outlive the object, and the object the last client. `add_more` may be empty.
  // CONTEXT: before the first client can connect.
  Service(vmm::Vm& vm, vmm::Api& api, AddMore add_more);
  // Cancels what is under way, and waits for its end.
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

private:
  [[nodiscard]] vmm::ApiReply create(const vmm::ApiRequest& request);

  vmm::Vm& vm_;
  vmm::ApiContext& context_;
  AddMore add_more_;
};

} // namespace stopvisor::snapshot
