// SPDX-License-Identifier: Apache-2.0
// Makes a snapshot on disk out of a machine's state and memory.
#pragma once

#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "tools/snapshot/disk_image.h"
#include "tools/snapshot/memory_file.h"
#include "tools/snapshot/state_file.h"

namespace stopvisor::snapshot {

// The machine, but for its memory.
struct Contents {
  std::string vm;
  uint64_t created_unix_ns = 0; // 0: now
  Names host;
  Names patches;
  std::vector<std::byte> machine; // its description
  Sections state;
  std::vector<DiskSource> disks = {}; // by their numbers
};

// What a new incremental snapshot is based on: a directory, and the identity that it had when the guest's pages
// were watched from then on.
struct Parent {
  std::string directory;
  Id id{};
  Hash digest{};
};

struct CreateOptions {
  std::string_view operation = "snapshot create";
  Encoding encoding = Encoding::kRaw;
  int level = 1;
  const Key* key = nullptr;
  std::optional<Parent> parent = {};
  Progress* progress = nullptr;
  std::stop_token stop = {};
  // Asked all along, by several threads, while disks and memory are copied: an error ends it. May be empty.
  std::function<std::expected<void, vmm::Error>()> go_on = {};
  unsigned threads = 0;
  bool replace = false; // a snapshot that is there, in one step
  // Asked once everything is written, before it is there: whether it was all of one moment. May be empty.
  std::function<std::expected<void, vmm::Error>()> confirm = {};
  FileSystem* files = nullptr;
};

// What a later incremental snapshot names as its parent.
struct Created {
  Manifest manifest;
  Hash digest{};
};

// A snapshot in two steps, for a guest that goes on between them: first what has to be as of one moment and is
// outside of memory, then the rest. CONTEXT: one thread; blocks. Until finish() nothing is there, and without it
// nothing remains.
class Creation {
public:
  // `options` must outlive it. RETURNS: as create().
  [[nodiscard]] static std::expected<Creation, vmm::Error> begin(const std::string& directory,
                                                                 const CreateOptions& options);
  Creation(Creation&&) noexcept;
  Creation& operator=(Creation&&) = delete;
  ~Creation();

  // Copies the images of `disks`, to which nobody writes meanwhile. Where the file system shares blocks this takes
  // no time. CONTEXT: at most once.
  [[nodiscard]] std::expected<void, vmm::Error> add_disks(const std::vector<DiskSource>& disks);
  // All else; the disks of `contents` are those that were added.
  [[nodiscard]] std::expected<Created, vmm::Error> finish(const Contents& contents, MemorySource& memory);

private:
  class Writer;
  explicit Creation(std::unique_ptr<Writer> writer);
  std::unique_ptr<Writer> writer_;
};

// Both in one. Writes the snapshot `directory`, with everything synced to the disk. Until it returns without an
// error there is no such directory (or, with `replace`, the old one), whatever happens, and afterwards the whole
// one is there. CONTEXT: blocks; memory is read by several threads. RETURNS: kRefused where the directory exists,
// or does not with `replace`; kFailed where the file system refuses, it was cancelled, or the state cannot be
// written.
[[nodiscard]] std::expected<Created, vmm::Error> create(const std::string& directory, const Contents& contents,
                                                        MemorySource& memory, const CreateOptions& options);

} // namespace stopvisor::snapshot
