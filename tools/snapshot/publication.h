// SPDX-License-Identifier: Apache-2.0
// A directory that is there wholly or not at all: it is made under another name, synced, and renamed.
#pragma once

#include <expected>
#include <string>
#include <string_view>

#include "tools/snapshot/file_system.h"
#include "vmm/error.h"

namespace stopvisor::snapshot {

// One directory that is being made. Whatever was not published is removed when the object goes; what a killed
// process left behind is removed by the next publication in the same folder, which sees that nobody holds its lock.
// CONTEXT: one thread, but for write() of different files; blocks on the file system.
class Publication {
public:
  // What is done where the directory is there already.
  enum class Existing { kRefuse, kReplace };

  // RETURNS: kRefused where `directory` exists and must not, or does not and must; kFailed where the file system
  // refuses.
  [[nodiscard]] static std::expected<Publication, vmm::Error>
  begin(std::string_view operation, const std::string& directory, Existing existing, FileSystem& files);
  ~Publication();
  Publication(Publication&& other) noexcept;
  Publication& operator=(Publication&&) = delete;

  // A new file in it.
  [[nodiscard]] std::expected<vmm::UniqueFd, vmm::Error> create(const std::string& name);
  // The same, with its content, synced.
  [[nodiscard]] std::expected<void, vmm::Error> add(const std::string& name, ByteSpan content);
  [[nodiscard]] std::expected<void, vmm::Error> sync(int fd, const std::string& name);
  // Makes the directory's name be there. After an error it is as before.
  [[nodiscard]] std::expected<void, vmm::Error> publish();

  [[nodiscard]] FileSystem& files() const noexcept { return *files_; }
  [[nodiscard]] vmm::Error failure(const std::string& name, int error) const;

private:
  Publication(std::string_view operation, std::string directory, Existing existing, FileSystem& files);
  [[nodiscard]] int make_partial();
  [[nodiscard]] std::expected<void, vmm::Error> undo(int error);

  std::string operation_;
  std::string directory_; // where it will be
  std::string folder_;    // around it
  std::string partial_;   // where it is meanwhile; empty when there is nothing to remove
  Existing existing_;
  FileSystem* files_;
  vmm::UniqueFd lock_; // of the directory that is being made
};

// Removes a directory of files. CONTEXT: any thread; blocks. RETURNS: 0 or an errno value.
[[nodiscard]] int remove_tree(FileSystem& files, const std::string& directory);
// Removes what dead writers left in `folder`; what cannot be removed stays.
void remove_leftovers(FileSystem& files, const std::string& folder);

} // namespace stopvisor::snapshot
