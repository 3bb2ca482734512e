// SPDX-License-Identifier: Apache-2.0
// Reads one snapshot's directory as hostile input.
#pragma once

#include <expected>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "tools/snapshot/digest.h"
#include "tools/snapshot/disk_image.h"
#include "tools/snapshot/manifest.h"
#include "tools/snapshot/parallel.h"
#include "tools/snapshot/state_file.h"
#include "vmm/unique_fd.h"

namespace stopvisor::snapshot {

struct OpenOptions {
  std::string_view operation = "snapshot verify"; // must outlive what is opened
  const Key* key = nullptr;                       // the same
  bool unchecked = false;          // a sealed snapshot may be opened without a key; its MACs are not checked then
  std::optional<Id> expected = {}; // which one it must be; of a chain, the newest
  std::stop_token stop = {};       // looked at between files: kFailed, "was cancelled"
};

// CONTEXT: any thread after open(); several may read.
class Snapshot {
public:
  // Checks the seal, the manifest, and the small files; not yet the memory.
  // RETURNS: kFailed where a file is not there or cannot be read; kRefused for whatever is wrong in it, where a key
  // is given and the snapshot is not sealed or is with another one, where it is sealed and no key is given, and
  // where it is not the one that is expected.
  [[nodiscard]] static std::expected<Snapshot, vmm::Error> open(const std::string& directory,
                                                                const OpenOptions& options);
  // The same in two steps: what it is of first (the seal, the manifest, the machine and the state), whose size is
  // not that of the memory; then the rest of it. CONTEXT of the second: once, after the first; one thread.
  [[nodiscard]] static std::expected<Snapshot, vmm::Error> describe(const std::string& directory,
                                                                    const OpenOptions& options);
  [[nodiscard]] std::expected<void, vmm::Error> open_contents();

  [[nodiscard]] const std::string& directory() const noexcept { return directory_; }
  [[nodiscard]] const Manifest& manifest() const noexcept { return manifest_; }
  [[nodiscard]] const Hash& digest() const noexcept { return digest_; }
  [[nodiscard]] bool mac_checked() const noexcept { return options_.key != nullptr; }
  [[nodiscard]] const std::vector<std::byte>& machine() const noexcept { return machine_; }
  [[nodiscard]] const Sections& state() const noexcept { return state_; }
  [[nodiscard]] const std::vector<Extent>& index() const noexcept { return index_; }
  // Whether the memory file can be mapped as it is: one that is full and raw.
  [[nodiscard]] bool mappable() const noexcept { return !manifest_.parent && manifest_.encoding == Encoding::kRaw; }
  [[nodiscard]] int memory_fd() const noexcept { return memory_.get(); }

  // Puts this snapshot's own pages of an extent to their places in `extent` (kExtentBytes), checked there: what is
  // checked is what the caller has. Others stay as they are. Pages that are not `stale` are zeros already: where
  // they are to be zeros they are not touched. After an error the buffer's content is not to be used.
  [[nodiscard]] std::expected<void, vmm::Error> read_extent(uint64_t number, std::span<std::byte> extent,
                                                            const PageSet& stale) const;
  // Checks every extent, and that nothing is where nothing should be.
  [[nodiscard]] std::expected<void, vmm::Error> verify_memory(const Work& how, Progress* progress) const;

  // A disk's image, where the manifest has its index.
  [[nodiscard]] ImageFile disk_image(size_t disk) const;
  // Whether this is what extent `number` of it was; `bytes` is empty where it is all zeros. What is checked is what
  // the caller has.
  [[nodiscard]] std::expected<void, vmm::Error> check_disk(size_t disk, uint64_t number, ByteSpan bytes) const;
  [[nodiscard]] uint64_t disk_bytes() const noexcept; // of all images that are here
  // Checks every image.
  [[nodiscard]] std::expected<void, vmm::Error> verify_disks(const Work& how, Progress* progress) const;
  [[nodiscard]] vmm::Error error(std::string_view file, std::string reason) const;

private:
  struct DiskPart {
    vmm::UniqueFd image; // none where the image is not in the snapshot
    std::vector<DiskExtent> index;
  };

  Snapshot(std::string directory, const OpenOptions& options)
      : options_(options), directory_(std::move(directory)) {}
  [[nodiscard]] std::expected<std::vector<std::byte>, vmm::Error> read_small(const std::string& name,
                                                                             uint64_t most) const;
  [[nodiscard]] std::expected<std::vector<std::byte>, vmm::Error> read_summed(const std::string& name, Label label,
                                                                              const FileSum& sum) const;
  [[nodiscard]] std::expected<void, vmm::Error> open_seal();
  [[nodiscard]] std::expected<void, vmm::Error> open_machine();
  [[nodiscard]] std::expected<void, vmm::Error> open_index();
  // A large file, of that length.
  [[nodiscard]] std::expected<vmm::UniqueFd, vmm::Error> open_large(const std::string& name, uint64_t bytes) const;
  [[nodiscard]] std::expected<void, vmm::Error> open_disks();
  [[nodiscard]] std::expected<void, vmm::Error> read_at(std::span<std::byte> to, uint64_t offset) const;
  [[nodiscard]] std::expected<void, vmm::Error> read_frame(uint64_t number, std::span<std::byte> extent) const;
  [[nodiscard]] std::expected<void, vmm::Error> check_holes(uint64_t number) const;

  OpenOptions options_;
  std::string directory_;
  Manifest manifest_;
  Hash digest_{};
  std::vector<std::byte> machine_;
  Sections state_;
  std::vector<Extent> index_;
  vmm::UniqueFd memory_;
  std::vector<DiskPart> disks_; // by their numbers
};

} // namespace stopvisor::snapshot
