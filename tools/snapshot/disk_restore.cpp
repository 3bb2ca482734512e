// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/disk_restore.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

namespace stopvisor::snapshot {
namespace {

std::string name_of(size_t number) {
  return "disk " + std::to_string(number);
}

// What is none is not even opened: of a device, that alone may do something.
bool is_file(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) != 0 ||
         S_ISREG(status.st_mode); // one that is not there is found missing later
}

vmm::Error exists(std::string_view operation, const std::string& path) {
  return {std::string(operation), path, "exists already; it was left as it is", vmm::Status::kRefused};
}

// Under another name first: a copy that was not finished, or is not what it was, is never at its place.
std::expected<void, vmm::Error> place(std::string_view operation, const Snapshot& snapshot, size_t number,
                                      const std::string& path, const std::stop_token& stop) {
  FileSystem& files = FileSystem::real();
  struct stat status{};
  if (::lstat(path.c_str(), &status) == 0)
    return std::unexpected(exists(operation, path));
  const std::filesystem::path whole(path);
  const std::string part = (whole.parent_path() / ("." + whole.filename().string().substr(0, 128) + "." +
                                                   hex_text(random_id()) + kPartialSuffix))
                               .string();
  const auto file = files.create(part);
  if (!file)
    return std::unexpected(vmm::system_error(operation, path, file.error()));
  const Work how{operation, path, 0, stop};
  const ImageFile to{file->get(), path};
  const uint64_t bytes = snapshot.manifest().disks[number].bytes;
  auto done = copy_image(files, how, snapshot.disk_image(number), to, bytes, nullptr);
  if (done)
    done = for_extents(how, to, bytes, [&](uint64_t extent, ByteSpan content) {
      return snapshot.check_disk(number, extent, content);
    });
  if (done)
    if (const int error = files.rename_new(part, path))
      done = std::unexpected(error == EEXIST ? exists(operation, path) : vmm::system_error(operation, path, error));
  if (!done)
    (void)files.remove_file(part);
  return done;
}

} // namespace

void PlacedDisks::add(std::string path) {
  const std::scoped_lock guard(lock_);
  paths_.push_back(std::move(path));
}

void PlacedDisks::keep() noexcept {
  const std::scoped_lock guard(lock_);
  paths_.clear();
}

void PlacedDisks::remove() noexcept {
  const std::scoped_lock guard(lock_);
  for (const std::string& path : paths_)
    (void)::unlink(path.c_str());
  paths_.clear();
}

std::expected<void, vmm::Error> choose_disks(std::string_view operation, const Snapshot& snapshot,
                                             const DiskChoices& choices, vmm::VmConfig& config) {
  const auto refuse = [&](std::string reason, vmm::Status status) {
    return std::unexpected(vmm::Error{std::string(operation), snapshot.directory(), std::move(reason), status});
  };
  const std::vector<Disk>& disks = snapshot.manifest().disks;
  if (!disks.empty() && disks.size() != config.disks.size())
    return refuse("has " + std::to_string(disks.size()) + " disks in manifest.json, and " +
                      std::to_string(config.disks.size()) + " in machine.dtb",
                  vmm::Status::kRefused);
  for (const auto& [number, path] : choices.places) {
    if (number >= config.disks.size())
      return refuse("has no " + name_of(number) + ": it has " + std::to_string(config.disks.size()) +
                        ", and the first is disk 0",
                    vmm::Status::kUsage);
    config.disks[number].path = path;
  }
  for (size_t number = 0; number < disks.size(); ++number)
    if (disks[number].index && !choices.places.contains(number))
      return refuse("has the image of " + name_of(number) +
                        ": say in which new file the guest is to have it, with " + "--disk " +
                        std::to_string(number) + "=FILE",
                    vmm::Status::kRefused);
  if (choices.as_they_are || snapshot.mac_checked())
    return {};
  for (size_t number = 0; number < config.disks.size(); ++number)
    if (!choices.places.contains(number) &&
        (number >= disks.size() || disks[number].changed_unix_ns == 0 || !is_file(config.disks[number].path)))
      return refuse(
          "wants " + config.disks[number].path + " as " + name_of(number) +
              ", and nothing in it says what that was like: nobody can tell a guest's image from any other "
              "file that a stranger wrote down. Say which with --disk " +
              std::to_string(number) + "=FILE, or --disks-as-they-are",
          vmm::Status::kRefused);
  return {};
}

std::expected<void, vmm::Error> place_disks(std::string_view operation, const Snapshot& snapshot,
                                            const DiskChoices& choices, PlacedDisks& placed,
                                            const std::stop_token& stop) {
  const std::vector<Disk>& disks = snapshot.manifest().disks;
  for (const auto& [number, path] : choices.places) {
    if (number >= disks.size() || !disks[number].index)
      continue;
    if (auto done = place(operation, snapshot, number, path, stop); !done)
      return done;
    placed.add(path);
  }
  return {};
}

std::expected<void, vmm::Error> check_disks(std::string_view operation, const Snapshot& snapshot,
                                            const DiskChoices& choices, const vmm::Vm& vm) {
  const std::vector<int> images = vm.disk_images();
  const std::vector<Disk>& disks = snapshot.manifest().disks;
  for (size_t number = 0; number < disks.size() && !choices.as_they_are; ++number) {
    const Disk& then = disks[number];
    if (choices.places.contains(number) || then.changed_unix_ns == 0)
      continue;
    const ImageAt now = image_at(images[number]);
    if (now.bytes != then.bytes || now.changed_unix_ns != then.changed_unix_ns)
      return std::unexpected(vmm::Error{std::string(operation), vm.config().disks[number].path,
                                        "was written since the snapshot, of whose " + name_of(number) +
                                            " it is the image: a guest that goes on with it would damage its file "
                                            "system. Give the image as it was, "
                                            "with --disk " +
                                            std::to_string(number) + "=FILE, or --disks-as-they-are",
                                        vmm::Status::kRefused});
  }
  return {};
}

} // namespace stopvisor::snapshot
