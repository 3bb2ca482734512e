// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/publication.h"

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <utility>

namespace stopvisor::snapshot {
namespace {

constexpr int kAttempts = 16; // to find a name nobody has

bool is_there(const std::string& path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0;
}

// A directory that somebody removed between our making it and our locking it.
bool is_removed(int fd) {
  struct stat status{};
  return ::fstat(fd, &status) != 0 || status.st_nlink == 0;
}

} // namespace

int remove_tree(FileSystem& files, const std::string& directory) {
  const auto names = files.list(directory);
  if (!names)
    return names.error();
  for (const std::string& name : *names)
    if (const int error = files.remove_file(directory + "/" + name); error != 0 && error != ENOENT)
      return error;
  return files.remove_directory(directory);
}

void remove_leftovers(FileSystem& files, const std::string& folder) {
  const auto names = files.list(folder);
  if (!names)
    return;
  for (const std::string& name : *names) {
    if (!name.starts_with('.') || !name.ends_with(kPartialSuffix))
      continue;
    // What it has is removed by way of its descriptor, which is no link's: somebody else may have put the name
    // here.
    const auto directory = files.open_real_directory(folder + "/" + name);
    if (!directory || files.lock(directory->get()) != 0)
      continue;
    const std::string inside = "/proc/self/fd/" + std::to_string(directory->get());
    for (const std::string& file : files.list(inside).value_or(std::vector<std::string>{}))
      (void)files.remove_file(inside + "/" + file);
    (void)files.remove_directory(folder + "/" + name);
  }
}

Publication::Publication(std::string_view operation, std::string directory, Existing existing, FileSystem& files)
    : operation_(operation), directory_(std::move(directory)), existing_(existing), files_(&files) {
  while (directory_.size() > 1 && directory_.ends_with('/'))
    directory_.pop_back();
  folder_ = std::filesystem::path(directory_).parent_path().string();
  if (folder_.empty())
    folder_ = ".";
}

Publication::Publication(Publication&& other) noexcept
    : operation_(std::move(other.operation_)), directory_(std::move(other.directory_)),
      folder_(std::move(other.folder_)), partial_(std::exchange(other.partial_, {})), existing_(other.existing_),
      files_(other.files_), lock_(std::move(other.lock_)) {}

Publication::~Publication() {
  if (!partial_.empty())
    (void)remove_tree(*files_, partial_);
}

vmm::Error Publication::failure(const std::string& name, int error) const {
  return vmm::system_error(operation_, name.empty() ? directory_ : directory_ + "/" + name, error);
}

std::expected<Publication, vmm::Error> Publication::begin(std::string_view operation, const std::string& directory,
                                                          Existing existing, FileSystem& files) {
  Publication publication(operation, directory, existing, files);
  const bool exists = is_there(publication.directory_);
  if (exists != (existing == Existing::kReplace))
    return std::unexpected(vmm::Error{std::string(operation), directory,
                                      exists ? "exists already; it was left as it is" : "does not exist",
                                      vmm::Status::kRefused});
  remove_leftovers(files, publication.folder_);
  if (const int error = publication.make_partial())
    return std::unexpected(publication.failure("", error));
  return publication;
}

int Publication::make_partial() {
  const std::string name = std::filesystem::path(directory_).filename().string();
  int error = EEXIST;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const std::string path = folder_ + "/." + name.substr(0, 128) + "." + hex_text(random_id()) + kPartialSuffix;
    error = files_->make_directory(path);
    if (error == EEXIST)
      continue;
    if (error != 0)
      return error;
    auto directory = files_->open_directory(path);
    error = directory ? files_->lock(directory->get()) : directory.error();
    if (error == 0 && !is_removed(directory->get())) {
      partial_ = path;
      lock_ = *std::move(directory);
      return 0;
    }
    // Another writer took it for a dead one's before we had its lock: it is gone, or will be.
    if (error == 0 || error == EWOULDBLOCK || error == ENOENT) {
      error = EBUSY;
      continue;
    }
    (void)files_->remove_directory(path);
    return error;
  }
  return error;
}

std::expected<vmm::UniqueFd, vmm::Error> Publication::create(const std::string& name) {
  auto file = files_->create(partial_ + "/" + name);
  if (!file)
    return std::unexpected(failure(name, file.error()));
  return *std::move(file);
}

std::expected<void, vmm::Error> Publication::add(const std::string& name, ByteSpan content) {
  const auto file = create(name);
  if (!file)
    return std::unexpected(file.error());
  if (const int error = files_->write(file->get(), content, 0))
    return std::unexpected(failure(name, error));
  return sync(file->get(), name);
}

std::expected<void, vmm::Error> Publication::sync(int fd, const std::string& name) {
  if (const int error = files_->sync(fd))
    return std::unexpected(failure(name, error));
  return {};
}

// Nobody can say whether the new name lasts: better the old state, which is one of the two that are allowed.
std::expected<void, vmm::Error> Publication::undo(int error) {
  const bool replace = existing_ == Existing::kReplace;
  const int undone = replace ? files_->exchange(partial_, directory_) : files_->rename(directory_, partial_);
  vmm::Error said = failure("", error);
  if (undone != 0) {
    if (!replace) // the whole new one is there, and stays
      partial_.clear();
    said.reason += "; the whole new one is there, but a power loss may take it away";
  }
  return std::unexpected(std::move(said));
}

std::expected<void, vmm::Error> Publication::publish() {
  if (auto synced = sync(lock_.get(), ""); !synced)
    return synced;
  const auto folder = files_->open_directory(folder_);
  if (!folder)
    return std::unexpected(failure("", folder.error()));
  // rename(2) refuses a directory that has something in it, so that two writers of one name cannot both win.
  const bool replace = existing_ == Existing::kReplace;
  const int moved = replace ? files_->exchange(partial_, directory_) : files_->rename(partial_, directory_);
  if (moved == ENOTEMPTY || moved == EEXIST || moved == ENOTDIR)
    return std::unexpected(
        vmm::Error{operation_, directory_, "exists already; it was left as it is", vmm::Status::kRefused});
  if (moved != 0)
    return std::unexpected(failure("", moved));
  if (const int error = files_->sync(folder->get()))
    return undo(error);
  if (!replace)
    partial_.clear(); // otherwise it is the old one's now, and is removed with us
  return {};
}

} // namespace stopvisor::snapshot
