// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/disk_image.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace stopvisor::snapshot {
namespace {

using Done = std::expected<void, vmm::Error>;

// What FICLONE says where blocks cannot be shared (ioctl_ficlone(2)): another file system, one that cannot, a block
// device.
bool cannot_share(int error) noexcept {
  return error == EXDEV || error == EOPNOTSUPP || error == ENOTTY || error == EINVAL || error == EISDIR ||
         error == ENOSYS;
}

bool is_zero(ByteSpan bytes) noexcept {
  return bytes.front() == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

class Image {
public:
  Image(const Work& how, const ImageFile& file, uint64_t bytes) : how_(how), file_(file), bytes_(bytes) {}

  // A hole at the end and an end before it look alike to whoever looks for data.
  [[nodiscard]] Done check_size() const {
    struct stat status{};
    if (::fstat(file_.fd, &status) != 0)
      return failure(errno);
    if (S_ISREG(status.st_mode) && static_cast<uint64_t>(status.st_size) < bytes_)
      return refuse("has " + std::to_string(status.st_size) + " bytes, and " + std::to_string(bytes_) +
                    " are expected");
    return {};
  }
  // CONTEXT: several threads. They share the file's position, which nobody goes by.
  [[nodiscard]] Done visit(uint64_t number, const VisitExtent& what) const {
    const uint64_t begin = number * kExtentBytes;
    const uint64_t size = std::min(kExtentBytes, bytes_ - begin);
    const off_t data = ::lseek(file_.fd, static_cast<off_t>(begin), SEEK_DATA);
    if (data < 0 ? errno == ENXIO : static_cast<uint64_t>(data) >= begin + size)
      return what(number, {});
    std::vector<std::byte> buffer(size);
    for (uint64_t done = 0; done < size;) {
      const ssize_t got = ::pread(file_.fd, buffer.data() + done, size - done, static_cast<off_t>(begin + done));
      if (got < 0 && errno == EINTR)
        continue;
      if (got < 0)
        return failure(errno);
      if (got == 0)
        return refuse("shrank while it was read");
      done += static_cast<uint64_t>(got);
    }
    return what(number, is_zero(buffer) ? ByteSpan() : buffer);
  }

private:
  [[nodiscard]] Done failure(int error) const {
    return std::unexpected(vmm::system_error(how_.operation, file_.name, error));
  }
  [[nodiscard]] Done refuse(std::string reason) const {
    return std::unexpected(
        vmm::Error{std::string(how_.operation), file_.name, std::move(reason), vmm::Status::kRefused});
  }

  const Work& how_;
  const ImageFile& file_;
  uint64_t bytes_;
};

// Beside what else the snapshot has to do.
void begin_progress(Progress* progress, uint64_t bytes) noexcept {
  if (progress != nullptr)
    progress->total_bytes.fetch_add(bytes, std::memory_order_relaxed); // a figure for people
}

void add_progress(Progress* progress, uint64_t number, uint64_t bytes) noexcept {
  if (progress != nullptr)
    progress->done_bytes.fetch_add(std::min(kExtentBytes, bytes - number * kExtentBytes),
                                   std::memory_order_relaxed);
}

} // namespace

ImageAt image_at(int fd) noexcept {
  ImageAt at;
  struct stat status{};
  if (const off_t end = ::lseek(fd, 0, SEEK_END); end > 0) // of a block device, fstat() has no size
    at.bytes = static_cast<uint64_t>(end);
  if (::fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_mtim.tv_sec >= 0)
    at.changed_unix_ns = static_cast<uint64_t>(status.st_mtim.tv_sec) * 1'000'000'000 +
                         static_cast<uint64_t>(status.st_mtim.tv_nsec);
  return at;
}

std::expected<void, vmm::Error> for_extents(const Work& how, const ImageFile& image, uint64_t bytes,
                                            const VisitExtent& visit) {
  const Image reader(how, image, bytes);
  if (auto fine = reader.check_size(); !fine)
    return fine;
  return in_parallel(how, extents_of(bytes), [&](uint64_t number) { return reader.visit(number, visit); });
}

std::expected<void, vmm::Error> copy_image(FileSystem& files, const Work& how, const ImageFile& from,
                                           const ImageFile& to, uint64_t bytes, Progress* progress) {
  const auto failure = [&](int error) { return std::unexpected(vmm::system_error(how.operation, to.name, error)); };
  const int shared = files.clone(from.fd, to.fd);
  if (shared != 0 && !cannot_share(shared))
    return failure(shared);
  if (const int error = files.resize(to.fd, bytes)) // a file may have more behind what it had as a disk
    return failure(error);
  if (shared == 0)
    return {};
  begin_progress(progress, bytes);
  return for_extents(how, from, bytes, [&](uint64_t number, ByteSpan extent) -> Done {
    add_progress(progress, number, bytes);
    if (extent.empty())
      return {};
    if (const int error = files.write(to.fd, extent, number * kExtentBytes))
      return failure(error);
    files.begin_writeback(to.fd, number * kExtentBytes, extent.size());
    return {};
  });
}

std::expected<std::vector<DiskExtent>, vmm::Error> index_image(const Work& how, const ImageFile& image,
                                                               uint64_t bytes, const Id& id, size_t disk,
                                                               const Key* key, Progress* progress) {
  std::vector<DiskExtent> extents(extents_of(bytes));
  begin_progress(progress, bytes);
  auto done = for_extents(how, image, bytes, [&](uint64_t number, ByteSpan extent) -> Done {
    add_progress(progress, number, bytes);
    if (extent.empty())
      return {};
    DiskExtent& entry = extents[number];
    entry.has_data = 1;
    entry.xxh3 = xxh3_of(extent);
    if (key != nullptr)
      entry.mac = key->disk_mac(id, disk, number, extent);
    return {};
  });
  if (!done)
    return std::unexpected(std::move(done.error()));
  return extents;
}

std::vector<std::byte> write_disk_index(const std::vector<DiskExtent>& extents) {
  std::vector<std::byte> bytes(sizeof(DiskIndexHeader) + extents.size() * sizeof(DiskExtent));
  const DiskIndexHeader header{.extents = extents.size()};
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::memcpy(bytes.data() + sizeof(header), extents.data(), extents.size() * sizeof(DiskExtent));
  return bytes;
}

std::expected<std::vector<DiskExtent>, vmm::Error> read_disk_index(std::string_view operation,
                                                                   std::string_view object, ByteSpan bytes,
                                                                   const Disk& disk, bool sealed) {
  const auto wrong = [&](std::string reason) {
    return std::unexpected(
        vmm::Error{std::string(operation), std::string(object), std::move(reason), vmm::Status::kRefused});
  };
  const uint64_t count = extents_of(disk.bytes);
  DiskIndexHeader header;
  if (bytes.size() != sizeof(header) + count * sizeof(DiskExtent))
    return wrong("has not the length that the disk wants");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header != DiskIndexHeader{.extents = count})
    return wrong("is not an index of format 2 for this disk");
  std::vector<DiskExtent> extents(count);
  std::memcpy(extents.data(), bytes.data() + sizeof(header), count * sizeof(DiskExtent));
  for (uint64_t number = 0; number < count; ++number) {
    const DiskExtent& entry = extents[number];
    const std::string where = "extent " + std::to_string(number);
    if (entry.zero != 0 || entry.has_data > 1)
      return wrong(where + " is neither data nor zeros");
    if (entry.has_data == 0 && entry != DiskExtent{})
      return wrong(where + " is all zeros, and has checksums");
    if (!sealed && entry.mac != Hash{})
      return wrong(where + " has a MAC, and the snapshot is not sealed");
  }
  return extents;
}

} // namespace stopvisor::snapshot
