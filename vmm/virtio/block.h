// SPDX-License-Identifier: Apache-2.0
// The block device (virtio 1.2, 5.2): a raw image file, or a block device of the host, as a disk.
//
// Requests are served one after the other on the device's worker, each to its end before the next is looked at; so
// wherever the guest is stopped, a request is either not begun or done (docs/adr/0010-virtio-workers.md). What was
// written is in the host's page cache, like the writes of any program, and outlives this process; a flush takes it
// to the disk.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <string>

#include "vmm/virtio/block_image.h"
#include "vmm/virtio/device_table.h"

namespace stopvisor::vmm::virtio {

class Block final : public RequestDevice {
public:
  // `name` is also the disk's serial number, as GET_ID gives it.
  Block(BlockImage image, bool read_only, std::string name);

  [[nodiscard]] const std::string& name() const noexcept override { return name_; }
  [[nodiscard]] uint32_t type() const noexcept override { return 2; }
  [[nodiscard]] uint64_t features() const noexcept override;
  [[nodiscard]] std::span<const uint16_t> queue_sizes() const noexcept override;
  [[nodiscard]] std::span<const std::byte> config() const noexcept override { return config_; }
  [[nodiscard]] int image() const noexcept override { return image_.fd.get(); }
  [[nodiscard]] std::vector<DeviceCounter> counters() const override;

  void save_state(StateWriter& to) const override;
  void restore_state(StateReader& from) override;

protected:
  [[nodiscard]] uint32_t handle(const Chain& request) noexcept override;

private:
  // What came of a request: its status byte, and how many bytes of data before it were filled.
  struct Answer {
    uint8_t status;
    uint32_t filled;
  };
  [[nodiscard]] Answer serve_type(const Chain& request, uint32_t type, uint64_t sector) const noexcept;
  [[nodiscard]] Answer read(const Chain& request, uint64_t sector) const noexcept;
  [[nodiscard]] uint8_t write(const Chain& request, uint64_t sector) const noexcept;
  [[nodiscard]] uint8_t flush() const noexcept;
  [[nodiscard]] Answer identify(const Chain& request) const noexcept;
  [[nodiscard]] uint8_t change_range(const Chain& request, uint32_t type) const noexcept;
  [[nodiscard]] bool zero(uint64_t offset, uint64_t bytes, bool may_unmap) const noexcept;
  [[nodiscard]] static uint32_t fill_gap(const Chain& request, uint32_t filled) noexcept;
  [[nodiscard]] bool holds(uint64_t sector, uint64_t bytes) const noexcept;
  void write_config() noexcept;
  void count(const Chain& request, uint32_t type, Answer answer) noexcept;

  const BlockImage image_;
  const bool read_only_;
  const std::string name_;
  // virtio_blk_config (5.2.4) up to write_zeroes_may_unmap and its padding.
  std::array<std::byte, 60> config_{};

  // Requests that were done, by kind; and all that got an error. Written by jobs alone.
  WorkCounter reads_, bytes_read_, writes_, bytes_written_, flushes_, discards_, zeroings_, errors_;
};

// For the device table.
[[nodiscard]] size_t count_blocks(const VmConfig& config);
[[nodiscard]] std::expected<std::unique_ptr<Device>, Error> make_block(const VmConfig& config, size_t index);
[[nodiscard]] Properties describe_block(const VmConfig& config, size_t index);
[[nodiscard]] std::expected<void, Error> add_block(VmConfig& config, const Properties& properties);

} // namespace stopvisor::vmm::virtio
