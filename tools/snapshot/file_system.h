// SPDX-License-Identifier: Apache-2.0
// The system calls by which a snapshot gets to the disk, in one place so that tests can let each of them fail.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <vector>

#include "tools/snapshot/digest.h"
#include "vmm/unique_fd.h"

namespace stopvisor::snapshot {

// One call, of those that change something or make it last.
enum class Call {
  kMakeDirectory,
  kCreate,
  kOpen,
  kLock,
  kResize,
  kWrite,
  kSync,
  kRename,
  kExchange,
  kRemove,
  kList,
  kClone
};

// Thin: each function is one call, and returns 0 or an errno value. CONTEXT: any thread; blocks on the file system.
class FileSystem {
public:
  virtual ~FileSystem() = default;

  [[nodiscard]] int make_directory(const std::string& path);
  [[nodiscard]] std::expected<vmm::UniqueFd, int> create(const std::string& path); // that is not there yet
  [[nodiscard]] std::expected<vmm::UniqueFd, int> open_directory(const std::string& path);
  [[nodiscard]] std::expected<vmm::UniqueFd, int> open_real_directory(const std::string& path); // and not by a link
  [[nodiscard]] int lock(int fd); // EWOULDBLOCK where somebody else has it
  [[nodiscard]] int resize(int fd, uint64_t bytes);
  [[nodiscard]] int write(int fd, ByteSpan bytes, uint64_t offset); // all of it
  [[nodiscard]] int clone(int from, int to); // makes `to` share all of `from`'s blocks, where the file system can
  void begin_writeback(int fd, uint64_t offset, uint64_t bytes) noexcept; // a hint: so that sync() finds less to do
  [[nodiscard]] int sync(int fd);
  [[nodiscard]] int rename(const std::string& from, const std::string& to);
  [[nodiscard]] int rename_new(const std::string& from, const std::string& to); // EEXIST where `to` is there
  [[nodiscard]] int exchange(const std::string& one, const std::string& other);
  [[nodiscard]] int remove_file(const std::string& path);
  [[nodiscard]] int remove_directory(const std::string& path);
  [[nodiscard]] std::expected<std::vector<std::string>, int> list(const std::string& path);

  // The real one. CONTEXT: any thread.
  [[nodiscard]] static FileSystem& real();

protected:
  // Before each call. RETURNS: the errno value it is to fail with, or 0.
  virtual int fault(Call /*call*/) { return 0; }

private:
  [[nodiscard]] std::expected<vmm::UniqueFd, int> open_folder(const std::string& path, int flags);
};

} // namespace stopvisor::snapshot
