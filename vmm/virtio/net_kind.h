// SPDX-License-Identifier: Apache-2.0
// Network devices in the device table: one for each of VmConfig::nets, at its tap.
#pragma once

#include <cstddef>
#include <expected>
#include <memory>

#include "vmm/virtio/device_table.h"

namespace stopvisor::vmm::virtio {

[[nodiscard]] size_t count_nets(const VmConfig& config);
// RETURNS: as Tap::open().
[[nodiscard]] std::expected<std::unique_ptr<Device>, Error> make_net(const VmConfig& config, size_t index);
[[nodiscard]] Properties describe_net(const VmConfig& config, size_t index);
// RETURNS: kUsage where the tap is missing, or the address is none.
[[nodiscard]] std::expected<void, Error> add_net(VmConfig& config, const Properties& properties);

} // namespace stopvisor::vmm::virtio
