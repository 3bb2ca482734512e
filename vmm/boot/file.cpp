// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "vmm/unique_fd.h"

namespace stopvisor::vmm {
namespace {

// Linux moves at most 0x7ffff000 bytes in one read(2); smaller steps also let a signal in between.
constexpr size_t kReadStep = 1u << 30;

Error read_failure(std::string_view operation, const std::string& path, std::string reason) {
  return Error{std::string(operation), path, std::move(reason), Status::kFailed};
}

// What makes this file unfit, or an empty string.
std::string unfit(const struct stat& status, uint64_t max_bytes) {
  if (S_ISDIR(status.st_mode))
    return "is a directory";
  if (!S_ISREG(status.st_mode))
    return "is not a regular file";
  if (status.st_size == 0)
    return "is empty";
  if (static_cast<uint64_t>(status.st_size) > max_bytes)
    return "is too large: " + std::to_string(status.st_size) + " bytes, at most " + std::to_string(max_bytes) +
           " are taken";
  return {};
}

} // namespace

std::expected<FileBytes, Error> read_file(std::string_view operation, const std::string& path, uint64_t max_bytes) {
  // O_NONBLOCK: opening a FIFO that nobody writes must not hang before it is refused.
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!file)
    return std::unexpected(system_error(operation, path, errno));
  struct stat status{};
  if (::fstat(file.get(), &status) != 0)
    return std::unexpected(system_error(operation, path, errno));
  if (std::string reason = unfit(status, max_bytes); !reason.empty())
    return std::unexpected(read_failure(operation, path, std::move(reason)));

  const auto size = static_cast<size_t>(status.st_size);
  std::unique_ptr<std::byte[]> bytes(new (std::nothrow) std::byte[size]);
  if (!bytes)
    return std::unexpected(system_error(operation, path, ENOMEM));
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.get(), bytes.get() + done, std::min(size - done, kReadStep));
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0)
      return std::unexpected(system_error(operation, path, errno));
    if (got == 0)
      return std::unexpected(read_failure(operation, path, "shrank while it was read"));
    done += static_cast<size_t>(got);
  }
  return FileBytes(std::move(bytes), size);
}

} // namespace stopvisor::vmm
