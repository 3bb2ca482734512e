// SPDX-License-Identifier: Apache-2.0
// Images of disks: read piece by piece, copied, and vouched for by an index.
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <string>
#include <vector>

#include "tools/snapshot/digest.h"
#include "tools/snapshot/file_system.h"
#include "tools/snapshot/manifest.h"
#include "tools/snapshot/parallel.h"

namespace stopvisor::snapshot {

// An open file, and its name for messages. The descriptor is somebody else's.
struct ImageFile {
  int fd = -1;
  std::string name;
};

// What an image is like at a moment. A file whose size and time are still the same was not written since, as far as
// one can tell.
struct ImageAt {
  uint64_t bytes = 0;
  uint64_t changed_unix_ns = 0; // 0: not known, as of a block device
};
[[nodiscard]] ImageAt image_at(int fd) noexcept;

// What is done with an extent; `bytes` is empty where it is all zeros, else kExtentBytes or what the image leaves.
using VisitExtent = std::function<std::expected<void, vmm::Error>(uint64_t number, ByteSpan bytes)>;

// A disk of a machine of which a snapshot is made.
struct DiskSource {
  Disk disk;         // but for the index
  ImageFile image{}; // to be put into the snapshot; no descriptor: it is not
  VisitExtent check; // of each extent of the copy; may be empty
};

// Calls `visit` for each extent of the first `bytes` of the file, several at once. Holes are not read.
// CONTEXT: blocks. RETURNS: kFailed where it cannot be read, kRefused where it is shorter; errors of `visit`.
[[nodiscard]] std::expected<void, vmm::Error> for_extents(const Work& how, const ImageFile& image, uint64_t bytes,
                                                          const VisitExtent& visit);

// Makes `to`, an empty file, a copy of the first `bytes` of `from`, to which nobody writes meanwhile: their blocks
// are shared where the file system can do that, which takes no time; else what is not zero is copied.
[[nodiscard]] std::expected<void, vmm::Error> copy_image(FileSystem& files, const Work& how, const ImageFile& from,
                                                         const ImageFile& to, uint64_t bytes, Progress* progress);

// What vouches for the disk's image in the snapshot `id`.
[[nodiscard]] std::expected<std::vector<DiskExtent>, vmm::Error> index_image(const Work& how,
                                                                             const ImageFile& image, uint64_t bytes,
                                                                             const Id& id, size_t disk,
                                                                             const Key* key, Progress* progress);
[[nodiscard]] std::vector<std::byte> write_disk_index(const std::vector<DiskExtent>& extents);
// RETURNS: kRefused; `object` is the file.
[[nodiscard]] std::expected<std::vector<DiskExtent>, vmm::Error>
read_disk_index(std::string_view operation, std::string_view object, ByteSpan bytes, const Disk& disk, bool sealed);

} // namespace stopvisor::snapshot
