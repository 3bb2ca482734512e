// SPDX-License-Identifier: Apache-2.0
// What a VM's process offers over its control socket: the VM's own API, and the libraries behind the verbs.
#pragma once

#include <expected>
#include <span>
#include <stop_token>
#include <vector>

#include "tools/migrate/service.h"
#include "tools/patch/service.h"
#include "tools/snapshot/service.h"
#include "vmm/control/api.h"
#include "vmm/error.h"
#include "vmm/state/section.h"
#include "vmm/vm.h"

namespace stopvisor::tools {

class VmServices {
public:
  // `vm` outlives the object, and the object the last client. CONTEXT: before the first client can connect.
  explicit VmServices(vmm::Vm& vm);
  VmServices(const VmServices&) = delete;
  VmServices& operator=(const VmServices&) = delete;

  [[nodiscard]] vmm::Api& api() noexcept { return api_; }
  // Takes up what of a state is ours and not the Vm's, where it is there. CONTEXT: before the guest runs.
  // RETURNS: what is wrong with it.
  [[nodiscard]] std::expected<void, vmm::Error> restore(std::span<const vmm::StateSection> sections);
  // After the VM's end, where its guest went elsewhere: until who asked for that has heard so, or some
  // seconds, or `stop`.
  void await_news_heard(const std::stop_token& stop) { migrations_.await_news_heard(stop); }

private:
  // What goes along with a VM's own state.
  void add_state(std::vector<vmm::StateSection>& to);

  // In the order in which each needs the one before: gone in reverse.
  vmm::Api api_;
  patch::Service patches_;
  snapshot::Service snapshots_;
  migrate::Service migrations_;
};

} // namespace stopvisor::tools
