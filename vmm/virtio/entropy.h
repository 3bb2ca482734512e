// SPDX-License-Identifier: Apache-2.0
// The entropy device (virtio 1.2, 5.4): fills buffers with the host's random bytes.
#pragma once

#include <cstddef>
#include <expected>
#include <memory>
#include <string>

#include "vmm/virtio/device_table.h"

namespace stopvisor::vmm::virtio {

class Entropy final : public RequestDevice {
public:
  [[nodiscard]] const std::string& name() const noexcept override { return name_; }
  [[nodiscard]] uint32_t type() const noexcept override { return 4; }
  [[nodiscard]] uint64_t features() const noexcept override { return 0; }
  [[nodiscard]] std::span<const uint16_t> queue_sizes() const noexcept override;
  [[nodiscard]] std::span<const std::byte> config() const noexcept override { return {}; }

protected:
  [[nodiscard]] uint32_t handle(const Chain& request) noexcept override;

private:
  const std::string name_ = "entropy";
};

// For the device table. A real kernel always has one; the probe guest has no use for it.
[[nodiscard]] size_t count_entropy(const VmConfig& config);
[[nodiscard]] std::expected<std::unique_ptr<Device>, Error> make_entropy(const VmConfig& config, size_t index);
[[nodiscard]] Properties describe_entropy(const VmConfig& config, size_t index);
[[nodiscard]] std::expected<void, Error> add_entropy(VmConfig& config, const Properties& properties);

} // namespace stopvisor::vmm::virtio
