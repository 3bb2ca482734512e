// SPDX-License-Identifier: Apache-2.0
#include "vmm/control/socket_place.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>

namespace stopvisor::vmm {
namespace {

constexpr size_t kLongestName = 64;
constexpr int kBacklog = 128;
constexpr unsigned kGeneratedNames = 10'000;

Error refuse(std::string_view object, std::string reason, Status status = Status::kFailed) {
  return Error{"control socket", std::string(object), std::move(reason), status};
}

bool is_name_character(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
         c == '-';
}

// Holds the directory's flock for a scope.
class DirectoryTurn {
public:
  explicit DirectoryTurn(int fd) noexcept : fd_(fd) {
    while (::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~DirectoryTurn() { ::flock(fd_, LOCK_UN); }
  DirectoryTurn(const DirectoryTurn&) = delete;
  DirectoryTurn& operator=(const DirectoryTurn&) = delete;

private:
  int fd_;
};

std::string lock_file(std::string_view name) {
  return std::string(name) + ".lock";
}
std::string socket_file(std::string_view name) {
  return std::string(name) + ".sock";
}

pid_t read_pid(int fd) {
  std::array<char, 16> text{};
  const ssize_t got = ::pread(fd, text.data(), text.size(), 0);
  pid_t pid = 0;
  if (got > 0)
    std::from_chars(text.data(), text.data() + got, pid);
  return pid;
}

// What trying to take a name's lock found.
struct LockAttempt {
  UniqueFd fd;        // open in any case but an error
  bool taken = false; // else a running VM holds it
};

// CONTEXT: under the directory's turn.
std::expected<LockAttempt, int> try_lock(int directory, std::string_view name) {
  UniqueFd fd(::openat(directory, lock_file(name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
                       S_IRUSR | S_IWUSR));
  if (!fd)
    return std::unexpected(errno);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0)
    return LockAttempt{std::move(fd), true};
  if (errno != EWOULDBLOCK)
    return std::unexpected(errno);
  return LockAttempt{std::move(fd), false};
}

bool write_pid(int fd) {
  const std::string text = std::to_string(::getpid()) + "\n";
  return ::ftruncate(fd, 0) == 0 && ::pwrite(fd, text.data(), text.size(), 0) == ssize_t(text.size());
}

std::expected<void, Error> check_directory(const std::string& path, int fd) {
  struct stat about{};
  if (::fstat(fd, &about) != 0)
    return std::unexpected(system_error("control socket", path, errno));
  if (about.st_uid != ::geteuid())
    return std::unexpected(refuse(path, "belongs to uid " + std::to_string(about.st_uid) + ", not to us"));
  if ((about.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    return std::unexpected(refuse(path, "others can get at it: its mode must be 0700"));
  return {};
}

// `chosen`: by XDG_RUNTIME_DIR. Without it the directory is root's, and whoever is not root wants to know why.
Error cannot_use(const std::string& path, int error_number, bool chosen) {
  Error error = system_error("control socket", path, error_number);
  if (!chosen)
    error.reason += "; XDG_RUNTIME_DIR is not set to an absolute path";
  return error;
}

// The names that files of the directory belong to.
std::set<std::string, std::less<>> names_in(int directory) {
  std::set<std::string, std::less<>> names;
  const int copy = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0)
    return names;
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(copy), &::closedir);
  if (!stream) {
    ::close(copy);
    return names;
  }
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string_view file = entry->d_name;
    for (const std::string_view suffix : {std::string_view(".sock"), std::string_view(".lock")}) {
      if (!file.ends_with(suffix))
        continue;
      const std::string_view name = file.substr(0, file.size() - suffix.size());
      if (check_vm_name(name))
        names.emplace(name);
    }
  }
  return names;
}

} // namespace

std::expected<void, Error> check_vm_name(std::string_view name) {
  if (name.empty() || name.size() > kLongestName)
    return std::unexpected(refuse("", "a VM's name has 1 to 64 characters", Status::kUsage));
  if (!std::ranges::all_of(name, is_name_character) || name.front() == '.' || name.front() == '-')
    return std::unexpected(
        refuse("", "a VM's name is made of A-Z a-z 0-9 _ . - and does not start with '.' or '-'", Status::kUsage));
  return {};
}

std::expected<SocketDirectory, Error> SocketDirectory::open(bool create) {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  SocketDirectory directory;
  const bool chosen = runtime != nullptr && runtime[0] == '/';
  directory.path = (chosen ? std::string(runtime) : std::string("/run")) + "/stopvisor";
  if (create && ::mkdir(directory.path.c_str(), S_IRWXU) != 0 && errno != EEXIST)
    return std::unexpected(cannot_use(directory.path, errno, chosen));
  const int fd = ::open(directory.path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  const int error = errno;
  directory.fd.reset(fd);
  if (fd < 0) {
    if (error == ENOENT && !create)
      return directory;
    if (error == ELOOP || error == ENOTDIR)
      return std::unexpected(refuse(directory.path, "must be a directory, and no symbolic link"));
    return std::unexpected(cannot_use(directory.path, error, chosen));
  }
  if (auto fine = check_directory(directory.path, directory.fd.get()); !fine)
    return std::unexpected(fine.error());
  return directory;
}

std::string SocketDirectory::socket_path(std::string_view name) const {
  return path + "/" + socket_file(name);
}
std::string SocketDirectory::log_path(std::string_view name) const {
  return path + "/" + std::string(name) + ".log";
}

std::expected<ControlPlace, Error> ControlPlace::claim(std::string_view name) {
  if (auto fine = check_vm_name(name); !fine)
    return std::unexpected(fine.error());
  auto directory = SocketDirectory::open(true);
  if (!directory)
    return std::unexpected(directory.error());
  const std::string path = directory->socket_path(name);
  if (path.size() >= sizeof(sockaddr_un::sun_path))
    return std::unexpected(refuse(path,
                                  "too long for a socket: " + std::to_string(path.size()) + " bytes, at most " +
                                      std::to_string(sizeof(sockaddr_un::sun_path) - 1) +
                                      "; choose a shorter name or XDG_RUNTIME_DIR",
                                  Status::kUsage));
  const DirectoryTurn turn(directory->fd.get());
  auto attempt = try_lock(directory->fd.get(), name);
  if (!attempt)
    return std::unexpected(
        system_error("control socket", directory->path + "/" + lock_file(name), attempt.error()));
  if (!attempt->taken)
    return std::unexpected(Error{"control socket", "",
                                 "a VM named " + std::string(name) + " is already running (pid " +
                                     std::to_string(read_pid(attempt->fd.get())) + ")",
                                 Status::kRefused});
  // The lock is ours, so a socket that is there belongs to a dead VM.
  ::unlinkat(directory->fd.get(), socket_file(name).c_str(), 0);
  ControlPlace place;
  place.name_ = name;
  place.lock_ = std::move(attempt->fd);
  if (!write_pid(place.lock_.get())) {
    const int error = errno;
    ::unlinkat(directory->fd.get(), lock_file(name).c_str(), 0);
    place.lock_.reset();
    return std::unexpected(system_error("control socket", directory->path + "/" + lock_file(name), error));
  }
  place.directory_ = std::move(*directory);
  return place;
}

std::expected<ControlPlace, Error> ControlPlace::claim_generated() {
  for (unsigned number = 1; number <= kGeneratedNames; ++number) {
    auto place = claim("vm" + std::to_string(number));
    if (place || place.error().status != Status::kRefused)
      return place;
  }
  return std::unexpected(refuse("", "no generated name is free; give one with --name"));
}

std::expected<UniqueFd, Error> ControlPlace::listen() {
  const std::string path = socket_path();
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // The socket's file is made by bind() with the mode of the descriptor: it never exists with another one.
  if (!fd || ::fchmod(fd.get(), S_IRUSR | S_IWUSR) != 0)
    return std::unexpected(system_error("control socket", path, errno));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1); // claim() checked the length
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), kBacklog) != 0)
    return std::unexpected(system_error("control socket", path, errno));
  return fd;
}

void ControlPlace::release() noexcept {
  if (!lock_)
    return;
  const DirectoryTurn turn(directory_.fd.get());
  ::unlinkat(directory_.fd.get(), socket_file(name_).c_str(), 0);
  ::unlinkat(directory_.fd.get(), lock_file(name_).c_str(), 0);
  lock_.reset();
}

std::expected<std::vector<RunningVm>, Error> running_vms() {
  auto directory = SocketDirectory::open(false);
  if (!directory)
    return std::unexpected(directory.error());
  std::vector<RunningVm> running;
  if (!directory->fd)
    return running;
  const DirectoryTurn turn(directory->fd.get());
  for (const std::string& name : names_in(directory->fd.get())) {
    auto attempt = try_lock(directory->fd.get(), name);
    if (!attempt)
      continue; // a file that is no lock of ours: not a VM
    if (!attempt->taken) {
      running.push_back({name, read_pid(attempt->fd.get())});
      continue;
    }
    ::unlinkat(directory->fd.get(), socket_file(name).c_str(), 0);
    ::unlinkat(directory->fd.get(), lock_file(name).c_str(), 0);
  }
  return running;
}

} // namespace stopvisor::vmm
