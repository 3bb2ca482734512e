// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "vmm/boot/file.h"
#include "vmm/machine_reader.h"
#include "vmm/spawn_arguments.h"
#include "vmm/unique_fd.h"

namespace stopvisor::vmm {
namespace {

constexpr const char* kOperation = "machine file";
constexpr std::array<std::byte, 4> kMagic{std::byte{0xd0}, std::byte{0x0d}, std::byte{0xfe}, std::byte{0xed}};
constexpr size_t kMaxComplaintBytes = 4096;

Error failed(const std::string& path, std::string reason, Status status = Status::kFailed) {
  return {kOperation, path, std::move(reason), status};
}

struct Pipe {
  UniqueFd read, write;
  [[nodiscard]] static std::expected<Pipe, int> make() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0)
      return std::unexpected(errno);
    return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
  }
};

// Reads some of `fd` into `to`, which keeps `most` bytes. RETURNS: false at its end.
bool read_some(int fd, std::vector<std::byte>& to, size_t most) {
  std::array<std::byte, 16384> chunk; // NOLINT(cppcoreguidelines-pro-type-member-init): read fills it
  const ssize_t got = ::read(fd, chunk.data(), chunk.size());
  if (got < 0)
    return errno == EINTR;
  const size_t taken = std::min(static_cast<size_t>(got), most - to.size());
  to.insert(to.end(), chunk.begin(), chunk.begin() + static_cast<ptrdiff_t>(taken));
  return got != 0;
}

// dtc's own words, on one line.
std::string complaint_of(const std::vector<std::byte>& bytes) {
  std::string line;
  for (const std::byte byte : bytes) {
    const char c = static_cast<char>(byte);
    if (c == '\n')
      line += "; ";
    else
      line += c >= ' ' && c < 0x7f ? c : '?';
  }
  while (line.ends_with("; "))
    line.resize(line.size() - 2);
  return line;
}

// RETURNS: an errno value where dtc cannot be started.
std::expected<pid_t, int> start_dtc(const std::string& path, int out, int complaints) {
  SpawnArguments spawn;
  ::posix_spawn_file_actions_addopen(&spawn.actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&spawn.actions, out, STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&spawn.actions, complaints, STDERR_FILENO);
  std::vector<std::string> words{"dtc", "-q", "-I", "dts", "-O", "dtb", "--", path};
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words)
    argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, "dtc", &spawn.actions, &spawn.attributes, argv.data(), environ);
  if (error != 0)
    return std::unexpected(error);
  return child;
}

std::expected<std::vector<std::byte>, Error> compile(const std::string& path) {
  auto out = Pipe::make();
  auto complaints = Pipe::make();
  if (!out || !complaints)
    return std::unexpected(system_error(kOperation, path, out ? complaints.error() : out.error()));
  const auto child = start_dtc(path, out->write.get(), complaints->write.get());
  if (!child && child.error() == ENOENT)
    return std::unexpected(failed(
        path, "is no flattened device tree, and there is no dtc to compile it (package device-tree-compiler)"));
  if (!child)
    return std::unexpected(system_error(kOperation, "dtc", child.error()));
  out->write.reset();
  complaints->write.reset();
  std::vector<std::byte> tree, said;
  std::array<pollfd, 2> wait{{{out->read.get(), POLLIN, 0}, {complaints->read.get(), POLLIN, 0}}};
  while (wait[0].fd >= 0 || wait[1].fd >= 0) { // poll(2) leaves out negative descriptors
    if (::poll(wait.data(), wait.size(), -1) < 0)
      continue; // EINTR
    if (wait[0].revents != 0 && !read_some(wait[0].fd, tree, kMaxMachineBytes + 1))
      wait[0].fd = -1;
    if (wait[1].revents != 0 && !read_some(wait[1].fd, said, kMaxComplaintBytes))
      wait[1].fd = -1;
  }
  int status = 0;
  while (::waitpid(*child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return std::unexpected(failed(path, "dtc refuses it: " + complaint_of(said), Status::kUsage));
  return tree;
}

void make_absolute(std::string& path, const std::filesystem::path& folder) {
  if (!path.empty())
    path = (folder / path).lexically_normal().string(); // an absolute one stays
}

} // namespace

std::expected<VmConfig, Error> read_machine_file(const std::string& path) {
  auto file = read_file(kOperation, path, kMaxMachineBytes);
  if (!file)
    return std::unexpected(file.error());
  std::expected<VmConfig, Error> config;
  if (std::ranges::equal(file->bytes().first(std::min(kMagic.size(), file->bytes().size())), kMagic)) {
    config = read_machine(file->bytes());
  } else {
    const auto tree = compile(path);
    if (!tree)
      return std::unexpected(tree.error());
    config = read_machine(*tree);
  }
  if (!config)
    return std::unexpected(failed(path + (config.error().object.empty() ? "" : ": " + config.error().object),
                                  config.error().reason, config.error().status));
  std::error_code error;
  const auto folder = std::filesystem::absolute(path, error).parent_path();
  if (error)
    return std::unexpected(failed(path, error.message()));
  make_absolute(config->kernel, folder);
  make_absolute(config->initrd, folder);
  for (DiskConfig& disk : config->disks)
    make_absolute(disk.path, folder);
  return config;
}

} // namespace stopvisor::vmm
