// SPDX-License-Identifier: Apache-2.0
// The control API, version 1: what a client may ask of a running VM (docs/reference/control-api.md).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "vmm/control/endpoints.h"
#include "vmm/control/request.h"
#include "vmm/vm.h"

namespace stopvisor::vmm {

class Api final : public ApiHandler {
public:
  // `vm` must outlive the object. Construct it before the first client can connect.
  explicit Api(Vm& vm);
  ~Api() override;

  // A path of somebody else's: the libraries behind the command's verbs bring their own. A segment "*" of `path`
  // stands for any one. CONTEXT: before the first client can connect; `serve` is called on connection threads.
  void add(std::string method, std::string path, std::function<ApiReply(const ApiRequest&)> serve);
  // What the endpoints work on.
  [[nodiscard]] ApiContext& context() noexcept;

  [[nodiscard]] ApiReply serve(const ApiRequest& request) override;
  void connection_ended(ConnectionId connection) noexcept override;

private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

} // namespace stopvisor::vmm
