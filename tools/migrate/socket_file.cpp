// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/socket_file.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "tools/migrate/sockets.h"

namespace stopvisor::migrate {
namespace {

// Whether somebody answers at `place`. A queue that is full is somebody's.
bool somebody_listens(const SocketAddress& place) noexcept {
  const vmm::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return fd && (::connect(fd.get(), place.get(), place.size) == 0 || (errno != ECONNREFUSED && errno != ENOENT));
}

// Makes room at a path where there is something. RETURNS: what speaks against it.
std::optional<vmm::Error> remove_stale(std::string_view operation, const Address& address) {
  struct stat before{};
  if (::lstat(address.path.c_str(), &before) != 0)
    return {}; // gone by now
  if (!S_ISSOCK(before.st_mode))
    return vmm::Error{std::string(operation), address.text, "is there already, and is no socket",
                      vmm::Status::kUsage};
  if (somebody_listens(unix_address(address.path)))
    return vmm::Error{std::string(operation), address.text, "somebody else listens there", vmm::Status::kBusy};
  struct stat now{};
  if (::lstat(address.path.c_str(), &now) != 0 || now.st_ino != before.st_ino || now.st_dev != before.st_dev)
    return {}; // it is another one, or none
  if (::unlink(address.path.c_str()) != 0 && errno != ENOENT)
    return vmm::system_error(operation, address.text, errno);
  return {};
}

} // namespace

SocketFile::~SocketFile() {
  struct stat about{};
  if (!path_.empty() && ::lstat(path_.c_str(), &about) == 0 && about.st_dev == device_ && about.st_ino == inode_)
    ::unlink(path_.c_str());
}

std::expected<SocketFile::Listening, vmm::Error> SocketFile::listen(std::string_view operation,
                                                                    const Address& address, int backlog) {
  const auto failed = [&] { return std::unexpected(vmm::system_error(operation, address.text, errno)); };
  const SocketAddress place = unix_address(address.path);
  Listening made{vmm::UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)), {}};
  // bind() makes the file with the mode of the descriptor: it never exists with another one.
  if (!made.fd || ::fchmod(made.fd.get(), S_IRUSR | S_IWUSR) != 0)
    return failed();
  int error = ::bind(made.fd.get(), place.get(), place.size) == 0 ? 0 : errno;
  if (error == EADDRINUSE) {
    if (auto wrong = remove_stale(operation, address))
      return std::unexpected(std::move(*wrong));
    error = ::bind(made.fd.get(), place.get(), place.size) == 0 ? 0 : errno;
  }
  if (error != 0)
    return std::unexpected(vmm::system_error(operation, address.text, error,
                                             error == EADDRINUSE ? vmm::Status::kBusy : vmm::Status::kFailed));
  struct stat about{};
  if (::lstat(address.path.c_str(), &about) != 0)
    return failed();
  made.file.path_ = address.path;
  made.file.device_ = about.st_dev;
  made.file.inode_ = about.st_ino;
  if (::listen(made.fd.get(), backlog) != 0)
    return failed();
  return made;
}

} // namespace stopvisor::migrate
