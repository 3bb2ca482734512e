// SPDX-License-Identifier: Apache-2.0
// What a user says of one network device.
#pragma once

#include <expected>
#include <optional>
#include <span>
#include <string>

#include "vmm/error.h"
#include "vmm/mac_address.h"

namespace stopvisor::vmm {

struct NetConfig {
  std::string tap;               // name of the host's interface
  std::optional<MacAddress> mac; // of the guest's side; none: default_mac()
};

// The address the `index`th device of the VM will have.
[[nodiscard]] MacAddress mac_of(const NetConfig& net, const std::string& vm_name, uint32_t index);

// Whether one VM can have all of them: names and addresses are fit, and none is there twice.
// CONTEXT: any thread. RETURNS: kUsage, the object is the tap.
[[nodiscard]] std::expected<void, Error> check_nets(std::span<const NetConfig> nets, const std::string& vm_name);

} // namespace stopvisor::vmm
