// SPDX-License-Identifier: Apache-2.0
// The file behind a disk: opened, checked and locked before a vCPU runs.
#pragma once

#include <cstdint>
#include <expected>

#include "vmm/disk_config.h"
#include "vmm/error.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm::virtio {

inline constexpr uint64_t kSectorBytes = 512; // whatever the disk's blocks are: virtio 1.2, 5.2

struct BlockImage {
  UniqueFd fd;
  uint64_t sectors = 0;
  bool is_device = false; // a block device of the host, not a file

  // Opens the image and locks it against other VMs of this host: a writer excludes everybody, readers exclude
  // writers. The lock belongs to the descriptor and goes with it, also where the process is killed.
  // RETURNS: kFailed, naming what is wrong with the file; kBusy where another VM has it; kUsage where it is no
  // disk.
  [[nodiscard]] static std::expected<BlockImage, Error> open(const DiskConfig& disk);
};

} // namespace stopvisor::vmm::virtio
