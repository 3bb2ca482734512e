// SPDX-License-Identifier: Apache-2.0
// The images of a VM's disks as a whole: locked, given back, and flushed, as a guest comes and goes.
#include <unistd.h>

#include <cerrno>

#include "vmm/virtio/block_image.h"
#include "vmm/vm_parts.h"

namespace stopvisor::vmm {

std::expected<void, Error> Vm::lock_disks() {
  const std::vector<int> images = disk_images();
  for (size_t disk = 0; disk < images.size(); ++disk)
    if (auto locked = virtio::lock_image(images[disk], config().disks[disk]); !locked) {
      while (disk-- > 0) // all of them or none
        virtio::unlock_image(images[disk]);
      return locked;
    }
  return {};
}

void Vm::unlock_disks() noexcept {
  for (const int image : disk_images())
    virtio::unlock_image(image);
}

std::expected<void, Error> Vm::flush_disks() {
  const std::vector<int> images = disk_images();
  for (size_t disk = 0; disk < images.size(); ++disk)
    if (!config().disks[disk].read_only && ::fdatasync(images[disk]) != 0)
      return std::unexpected(system_error("flush disk", config().disks[disk].path, errno));
  return {};
}

void Vm::announce_networks() noexcept {
  for (const auto& slot : parts_->slots)
    slot->device().announce();
}

} // namespace stopvisor::vmm
