// SPDX-License-Identifier: Apache-2.0
// Checks the images of disks that are in a snapshot.
#include <string>

#include "tools/snapshot/reader.h"

namespace stopvisor::snapshot {

ImageFile Snapshot::disk_image(size_t disk) const {
  return {disks_[disk].image.get(), directory_ + "/" + disk_image_name(disk)};
}

std::expected<void, vmm::Error> Snapshot::check_disk(size_t disk, uint64_t number, ByteSpan bytes) const {
  const DiskExtent& entry = disks_[disk].index[number];
  const auto wrong = [&](const char* what) {
    return std::unexpected(error(disk_image_name(disk), "extent " + std::to_string(number) + ": " + what));
  };
  if (bytes.empty() != (entry.has_data == 0))
    return wrong(bytes.empty() ? "is all zeros, and had data" : "has bytes where it should have none");
  if (bytes.empty())
    return {};
  if (xxh3_of(bytes) != entry.xxh3)
    return wrong("is not what its checksum says");
  if (options_.key != nullptr && !same_hash(options_.key->disk_mac(manifest_.id, disk, number, bytes), entry.mac))
    return wrong("was changed by somebody without the key");
  return {};
}

uint64_t Snapshot::disk_bytes() const noexcept {
  uint64_t bytes = 0;
  for (const Disk& disk : manifest_.disks)
    bytes += disk.index ? disk.bytes : 0;
  return bytes;
}

std::expected<void, vmm::Error> Snapshot::verify_disks(const Work& how, Progress* progress) const {
  for (size_t disk = 0; disk < disks_.size(); ++disk) {
    if (!disks_[disk].image)
      continue;
    const uint64_t bytes = manifest_.disks[disk].bytes;
    auto verified = for_extents(how, disk_image(disk), bytes, [&](uint64_t number, ByteSpan extent) {
      if (progress != nullptr)
        progress->done_bytes.fetch_add(std::min(kExtentBytes, bytes - number * kExtentBytes),
                                       std::memory_order_relaxed);
      return check_disk(disk, number, extent);
    });
    if (!verified)
      return verified;
  }
  return {};
}

} // namespace stopvisor::snapshot
