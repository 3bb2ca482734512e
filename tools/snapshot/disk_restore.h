// SPDX-License-Identifier: Apache-2.0
// The disks of a machine that goes on from a snapshot: where their images are, and whether they are what they were.
#pragma once

#include <cstddef>
#include <expected>
#include <map>
#include <mutex>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "tools/snapshot/reader.h"
#include "vmm/vm.h"

namespace stopvisor::snapshot {

struct DiskChoices {
  // Images by the disks' numbers. One that is in the snapshot is put there, into a new file; for another, this file
  // is taken in place of the one that it had. Whether its content fits the guest is the user's to know.
  std::map<size_t, std::string> places;
  // Images that were written since the snapshot are taken all the same, and those of which it does not say when
  // they were.
  bool as_they_are = false;
};

// Files that were made for a guest that does not run yet: removed when this goes, unless the guest has them.
// CONTEXT: any threads, as whoever ends the process without destructors does remove() first.
class PlacedDisks {
public:
  PlacedDisks() = default;
  ~PlacedDisks() { remove(); }
  PlacedDisks(const PlacedDisks&) = delete;
  PlacedDisks& operator=(const PlacedDisks&) = delete;

  void add(std::string path);
  void keep() noexcept; // the guest has them
  void remove() noexcept;

private:
  std::mutex lock_; // a leaf, but for system calls that wait for nobody
  std::vector<std::string> paths_;
};

// Puts the places into `config`, which is that of the snapshot's machine. RETURNS: kUsage for a disk that is not
// there; kRefused where an image is in the snapshot and has no place, or the snapshot is of other disks, or names a
// file of the host without a word on what it was like: without a key, a snapshot is a stranger's.
[[nodiscard]] std::expected<void, vmm::Error> choose_disks(std::string_view operation, const Snapshot& snapshot,
                                                           const DiskChoices& choices, vmm::VmConfig& config);
// Makes a copy of each image that is in the snapshot at its place, every byte of it checked there. The snapshot's
// files are only read. CONTEXT: after choose_disks(); blocks. RETURNS: kRefused where something is there already,
// or an image is not what it was; kFailed where the file system refuses, or where it "was cancelled". What was made
// is in `placed`, also then.
[[nodiscard]] std::expected<void, vmm::Error> place_disks(std::string_view operation, const Snapshot& snapshot,
                                                          const DiskChoices& choices, PlacedDisks& placed,
                                                          const std::stop_token& stop = {});
// Whether the images that stayed where they were have not been written since. CONTEXT: `vm` has opened and locked
// them. RETURNS: kRefused, naming the image.
[[nodiscard]] std::expected<void, vmm::Error> check_disks(std::string_view operation, const Snapshot& snapshot,
                                                          const DiskChoices& choices, const vmm::Vm& vm);

} // namespace stopvisor::snapshot
