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

  // Opens the image and locks it, unless `locked` is false: somebody else may still have it then, and what this
  // host had cached of it is forgotten. RETURNS: kFailed, naming what is wrong with the file; kUsage where it is no
  // disk; lock_image()'s errors.
  [[nodiscard]] static std::expected<BlockImage, Error> open(const DiskConfig& disk, bool locked = true);
};

// Locks an image against other VMs of this host, and on file systems that have such locks over a network of others:
// a writer excludes everybody, readers exclude writers. The lock belongs to the descriptor and goes with it, also
// where the process is killed. CONTEXT: any thread; does not wait for whoever has it. RETURNS: kBusy where another
// VM has it.
[[nodiscard]] std::expected<void, Error> lock_image(int fd, const DiskConfig& disk);
void unlock_image(int fd) noexcept;

} // namespace stopvisor::vmm::virtio
