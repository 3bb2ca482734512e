// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>

namespace stopvisor::snapshot {
namespace {

int error_of(int result) {
  return result == 0 ? 0 : errno;
}

} // namespace

FileSystem& FileSystem::real() {
  static FileSystem files;
  return files;
}

int FileSystem::make_directory(const std::string& path) {
  if (const int error = fault(Call::kMakeDirectory))
    return error;
  return error_of(::mkdir(path.c_str(), 0700)); // it holds a guest's memory
}

std::expected<vmm::UniqueFd, int> FileSystem::create(const std::string& path) {
  if (const int error = fault(Call::kCreate))
    return std::unexpected(error);
  vmm::UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file)
    return std::unexpected(errno);
  return file;
}

std::expected<vmm::UniqueFd, int> FileSystem::open_directory(const std::string& path) {
  return open_folder(path, 0);
}

std::expected<vmm::UniqueFd, int> FileSystem::open_real_directory(const std::string& path) {
  return open_folder(path, O_NOFOLLOW);
}

std::expected<vmm::UniqueFd, int> FileSystem::open_folder(const std::string& path, int flags) {
  if (const int error = fault(Call::kOpen))
    return std::unexpected(error);
  vmm::UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags));
  if (!directory)
    return std::unexpected(errno);
  return directory;
}

int FileSystem::lock(int fd) {
  if (const int error = fault(Call::kLock))
    return error;
  return error_of(::flock(fd, LOCK_EX | LOCK_NB));
}

int FileSystem::resize(int fd, uint64_t bytes) {
  if (const int error = fault(Call::kResize))
    return error;
  return error_of(::ftruncate(fd, static_cast<off_t>(bytes)));
}

int FileSystem::write(int fd, ByteSpan bytes, uint64_t offset) {
  while (!bytes.empty()) {
    if (const int error = fault(Call::kWrite))
      return error;
    const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      return written < 0 ? errno : EIO;
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return 0;
}

int FileSystem::clone(int from, int to) {
  if (const int error = fault(Call::kClone))
    return error;
  return error_of(::ioctl(to, FICLONE, from));
}

void FileSystem::begin_writeback(int fd, uint64_t offset, uint64_t bytes) noexcept {
  (void)::sync_file_range(fd, static_cast<off_t>(offset), static_cast<off_t>(bytes), SYNC_FILE_RANGE_WRITE);
}

int FileSystem::sync(int fd) {
  if (const int error = fault(Call::kSync))
    return error;
  return error_of(::fsync(fd));
}

int FileSystem::rename(const std::string& from, const std::string& to) {
  if (const int error = fault(Call::kRename))
    return error;
  return error_of(::rename(from.c_str(), to.c_str()));
}

int FileSystem::rename_new(const std::string& from, const std::string& to) {
  if (const int error = fault(Call::kRename))
    return error;
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0)
    return 0;
  if (errno != EINVAL) // a file system that cannot; it may know links
    return errno;
  if (::link(from.c_str(), to.c_str()) != 0)
    return errno;
  return error_of(::unlink(from.c_str()));
}

int FileSystem::exchange(const std::string& one, const std::string& other) {
  if (const int error = fault(Call::kExchange))
    return error;
  return error_of(::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE));
}

int FileSystem::remove_file(const std::string& path) {
  if (const int error = fault(Call::kRemove))
    return error;
  return error_of(::unlink(path.c_str()));
}

int FileSystem::remove_directory(const std::string& path) {
  if (const int error = fault(Call::kRemove))
    return error;
  return error_of(::rmdir(path.c_str()));
}

std::expected<std::vector<std::string>, int> FileSystem::list(const std::string& path) {
  if (const int error = fault(Call::kList))
    return std::unexpected(error);
  const auto close = [](DIR* directory) { ::closedir(directory); };
  const std::unique_ptr<DIR, decltype(close)> directory(::opendir(path.c_str()), close);
  if (!directory)
    return std::unexpected(errno);
  std::vector<std::string> names;
  while (const dirent* const entry = ::readdir(directory.get()))
    if (const std::string name = entry->d_name; name != "." && name != "..")
      names.push_back(name);
  std::ranges::sort(names);
  return names;
}

} // namespace stopvisor::snapshot
