// SPDX-License-Identifier: Apache-2.0
// The control API, version 1: what a client may ask of a running VM (docs/reference/control-api.md).
#pragma once

#include <memory>

#include "vmm/control/request.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

class Api final : public ApiHandler {
public:
  // `vm` must outlive the object. Construct it before the first client can connect.
  explicit Api(Vm& vm);
  ~Api() override;

  [[nodiscard]] ApiReply serve(const ApiRequest& request) override;
  void connection_ended(ConnectionId connection) noexcept override;

private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

} // namespace stopvisor::vmm
