// SPDX-License-Identifier: Apache-2.0
// Opens a snapshot: the seal, then the manifest, then the small files that the manifest vouches for.
#include "tools/snapshot/reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

namespace stopvisor::snapshot {
namespace {

constexpr uint64_t kMaxSealBytes = 4096;

std::string_view text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

} // namespace

vmm::Error Snapshot::error(std::string_view file, std::string reason) const {
  return {std::string(options_.operation), directory_ + (file.empty() ? "" : "/") + std::string(file),
          std::move(reason), vmm::Status::kRefused};
}

std::expected<std::vector<std::byte>, vmm::Error> Snapshot::read_small(const std::string& name,
                                                                       uint64_t most) const {
  const std::string path = directory_ + "/" + name;
  if (options_.stop.stop_requested())
    return std::unexpected(vmm::Error{std::string(options_.operation), directory_, "was cancelled"});
  const auto fail = [&](int number) {
    return std::unexpected(vmm::system_error(options_.operation, path, number));
  };
  // O_NONBLOCK: opening a FIFO must not hang before it is refused.
  const vmm::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW));
  if (!file)
    return fail(errno);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0)
    return fail(errno);
  if (!S_ISREG(status.st_mode))
    return std::unexpected(error(name, "is not a regular file"));
  if (static_cast<uint64_t>(status.st_size) > most)
    return std::unexpected(error(name, "is too large: " + std::to_string(status.st_size) + " bytes"));
  std::vector<std::byte> bytes(static_cast<size_t>(status.st_size));
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t got = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0)
      return fail(errno);
    if (got == 0)
      return std::unexpected(error(name, "shrank while it was read"));
    done += static_cast<size_t>(got);
  }
  return bytes;
}

std::expected<std::vector<std::byte>, vmm::Error> Snapshot::read_summed(const std::string& name, Label label,
                                                                        const FileSum& sum) const {
  auto bytes = read_small(name, sum.bytes);
  if (!bytes)
    return bytes;
  if (bytes->size() != sum.bytes)
    return std::unexpected(error(name, "has " + std::to_string(bytes->size()) + " bytes, and " +
                                           std::to_string(sum.bytes) + " are expected"));
  if (xxh3_of(*bytes) != sum.xxh3)
    return std::unexpected(error(name, "is not what its checksum in the manifest says"));
  if (options_.key != nullptr && !same_hash(options_.key->mac(label, manifest_.id, *bytes), sum.mac))
    return std::unexpected(error(name, "was changed by somebody without the key"));
  return bytes;
}

std::expected<void, vmm::Error> Snapshot::open_seal() {
  const auto seal_text = read_small(kSealName, kMaxSealBytes);
  if (!seal_text) {
    std::error_code ignored; // then the seal's own error says it
    const auto type = std::filesystem::status(directory_, ignored).type();
    if (type == std::filesystem::file_type::not_found)
      return std::unexpected(vmm::Error{std::string(options_.operation), directory_, "no such directory"});
    return std::unexpected(seal_text.error());
  }
  const auto seal = read_seal(options_.operation, directory_ + "/" + kSealName, text_of(*seal_text));
  if (!seal)
    return std::unexpected(seal.error());
  const auto text = read_small(kManifestName, kMaxManifestBytes);
  if (!text)
    return std::unexpected(text.error());
  digest_ = digest_of(*text);
  if (!same_hash(digest_, seal->digest))
    return std::unexpected(error(kManifestName, "is not what the seal says"));
  if (options_.key != nullptr && !seal->mac)
    return std::unexpected(error(kSealName, "is not sealed with a key, and one is given"));
  if (options_.key == nullptr && seal->mac && !options_.unchecked)
    return std::unexpected(error(kSealName, "is sealed with a key, and none is given"));
  if (options_.key != nullptr &&
      !same_hash(options_.key->mac(Label::kSeal, Id{}, *text), seal->mac.value_or(Hash{})))
    return std::unexpected(error(kSealName, "is not sealed with this key, or was changed by somebody without it"));
  auto manifest = read_manifest(options_.operation, directory_ + "/" + kManifestName, text_of(*text));
  if (!manifest)
    return std::unexpected(std::move(manifest.error()));
  manifest_ = *std::move(manifest);
  if (manifest_.sealed != seal->mac.has_value())
    return std::unexpected(error(kSealName, "has a MAC or not, and the manifest says otherwise"));
  if (options_.expected && *options_.expected != manifest_.id)
    return std::unexpected(error(kManifestName, "is of snapshot " + hex_text(manifest_.id) + ", and " +
                                                    hex_text(*options_.expected) + " is expected"));
  return {};
}

std::expected<void, vmm::Error> Snapshot::open_machine() {
  auto machine = read_summed(kMachineName, Label::kMachine, manifest_.machine);
  if (!machine)
    return std::unexpected(std::move(machine.error()));
  machine_ = *std::move(machine);
  const auto state = read_summed(kStateName, Label::kState, manifest_.state);
  if (!state)
    return std::unexpected(state.error());
  auto sections = read_state(options_.operation, directory_ + "/" + kStateName, *state);
  if (!sections)
    return std::unexpected(std::move(sections.error()));
  state_ = *std::move(sections);
  return {};
}

std::expected<void, vmm::Error> Snapshot::open_index() {
  const auto index = read_summed(kIndexName, Label::kIndex, manifest_.index);
  if (!index)
    return std::unexpected(index.error());
  auto extents = read_index(options_.operation, directory_ + "/" + kIndexName, *index, manifest_);
  if (!extents)
    return std::unexpected(std::move(extents.error()));
  index_ = *std::move(extents);
  return {};
}

std::expected<vmm::UniqueFd, vmm::Error> Snapshot::open_large(const std::string& name, uint64_t bytes) const {
  const std::string path = directory_ + "/" + name;
  vmm::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW));
  struct stat status{};
  if (!file || ::fstat(file.get(), &status) != 0)
    return std::unexpected(vmm::system_error(options_.operation, path, errno));
  if (!S_ISREG(status.st_mode))
    return std::unexpected(error(name, "is not a regular file"));
  if (static_cast<uint64_t>(status.st_size) != bytes)
    return std::unexpected(error(name, "has " + std::to_string(status.st_size) + " bytes, and " +
                                           std::to_string(bytes) + " are expected"));
  return file;
}

std::expected<void, vmm::Error> Snapshot::open_disks() {
  for (size_t number = 0; number < manifest_.disks.size(); ++number) {
    const Disk& disk = manifest_.disks[number];
    DiskPart& part = disks_.emplace_back();
    if (!disk.index)
      continue;
    const std::string name = disk_index_name(number);
    const auto bytes = read_summed(name, Label::kDiskIndex, *disk.index);
    if (!bytes)
      return std::unexpected(bytes.error());
    auto index = read_disk_index(options_.operation, directory_ + "/" + name, *bytes, disk, manifest_.sealed);
    if (!index)
      return std::unexpected(std::move(index.error()));
    auto image = open_large(disk_image_name(number), disk.bytes);
    if (!image)
      return std::unexpected(std::move(image.error()));
    part = {*std::move(image), *std::move(index)};
  }
  return {};
}

std::expected<Snapshot, vmm::Error> Snapshot::describe(const std::string& directory, const OpenOptions& options) {
  Snapshot snapshot(directory, options);
  auto opened = snapshot.open_seal();
  if (opened)
    opened = snapshot.open_machine();
  if (!opened)
    return std::unexpected(std::move(opened.error()));
  return snapshot;
}

std::expected<void, vmm::Error> Snapshot::open_contents() {
  if (auto opened = open_index(); !opened)
    return opened;
  if (auto opened = open_disks(); !opened)
    return opened;
  auto memory = open_large(file_name_of(manifest_.encoding), manifest_.file_bytes);
  if (!memory)
    return std::unexpected(std::move(memory.error()));
  memory_ = *std::move(memory);
  return {};
}

std::expected<Snapshot, vmm::Error> Snapshot::open(const std::string& directory, const OpenOptions& options) {
  auto snapshot = describe(directory, options);
  if (snapshot)
    if (auto opened = snapshot->open_contents(); !opened)
      return std::unexpected(std::move(opened.error()));
  return snapshot;
}

} // namespace stopvisor::snapshot
