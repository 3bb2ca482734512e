// SPDX-License-Identifier: Apache-2.0
#include "vmm/virtio/block_image.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>
#include <utility>

namespace stopvisor::vmm::virtio {
namespace {

constexpr const char* kOperation = "open disk";

std::unexpected<Error> refuse(const DiskConfig& disk, std::string reason, Status status) {
  return std::unexpected(Error{kOperation, disk.path, std::move(reason), status});
}

// Another host may have written to it since this one looked last. Best effort: pages that somebody else has mapped
// stay.
void forget_cached(int fd, bool is_device) noexcept {
  (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  if (is_device)
    (void)::ioctl(fd, BLKFLSBUF, 0); // needs CAP_SYS_ADMIN
}

std::expected<uint64_t, Error> size_of(int fd, const struct stat& status, const DiskConfig& disk) {
  uint64_t bytes = static_cast<uint64_t>(status.st_size);
  if (S_ISBLK(status.st_mode) && ::ioctl(fd, BLKGETSIZE64, &bytes) != 0)
    return std::unexpected(system_error(kOperation, disk.path, errno));
  return bytes;
}

} // namespace

std::expected<void, Error> lock_image(int fd, const DiskConfig& disk) {
  struct flock whole{};
  whole.l_type = disk.read_only ? F_RDLCK : F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (::fcntl(fd, F_OFD_SETLK, &whole) == 0)
    return {};
  if (errno == EAGAIN || errno == EACCES)
    return refuse(disk,
                  disk.read_only ? "it is in use to be written, by another VM or as another disk of this one"
                                 : "it is in use, by another VM or as another disk of this one (only disks that "
                                   "are all read-only, \",ro\", can share an image)",
                  Status::kBusy);
  return std::unexpected(system_error(kOperation, disk.path, errno));
}

void unlock_image(int fd) noexcept {
  struct flock whole{};
  whole.l_type = F_UNLCK;
  whole.l_whence = SEEK_SET;
  (void)::fcntl(fd, F_OFD_SETLK, &whole); // of a descriptor that is open it does not fail
}

std::expected<BlockImage, Error> BlockImage::open(const DiskConfig& disk, bool locked) {
  // Non-blocking, as a FIFO would otherwise keep us waiting for its other end; regular files do not care.
  UniqueFd fd(::open(disk.path.c_str(), (disk.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) {
    Error error = system_error(kOperation, disk.path, errno);
    if ((errno == EACCES || errno == EROFS || errno == EPERM) && !disk.read_only)
      error.reason += " (to write; \",ro\" asks for reading only)";
    return std::unexpected(std::move(error));
  }
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0)
    return std::unexpected(system_error(kOperation, disk.path, errno));
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
    return refuse(disk, S_ISDIR(status.st_mode) ? "is a directory" : "is neither a file nor a block device",
                  Status::kUsage);
  if (!locked)
    forget_cached(fd.get(), S_ISBLK(status.st_mode));
  else if (auto done = lock_image(fd.get(), disk); !done)
    return std::unexpected(done.error());
  const auto bytes = size_of(fd.get(), status, disk);
  if (!bytes)
    return std::unexpected(bytes.error());
  if (*bytes == 0 || *bytes % kSectorBytes != 0)
    return refuse(disk, "its size, " + std::to_string(*bytes) + " bytes, is not a number of sectors of 512 bytes",
                  Status::kUsage);
  return BlockImage{std::move(fd), *bytes / kSectorBytes, S_ISBLK(status.st_mode)};
}

} // namespace stopvisor::vmm::virtio
