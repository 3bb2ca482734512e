// SPDX-License-Identifier: Apache-2.0
// What a snapshot says of itself: manifest.json, and the seal that vouches for it.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/snapshot/digest.h"
#include "tools/snapshot/format.h"
#include "vmm/error.h"

namespace stopvisor::snapshot {

enum class Encoding { kRaw, kZstd };

[[nodiscard]] const char* file_name_of(Encoding encoding) noexcept;

// A piece of RAM, and where it begins in the memory file.
struct Region {
  uint64_t gpa = 0;
  uint64_t bytes = 0;
  uint64_t offset = 0;

  friend bool operator==(const Region&, const Region&) = default;
};

// Gives regions their offsets; they are ordered by address.
void lay_out(std::vector<Region>& regions) noexcept;
[[nodiscard]] uint64_t span_of(const std::vector<Region>& regions) noexcept;
[[nodiscard]] uint64_t extents_of(uint64_t span) noexcept;
// The pages of extent `number` that are of a region.
[[nodiscard]] PageSet ram_of(const std::vector<Region>& regions, uint64_t number) noexcept;
// RETURNS: what is wrong with them, or an empty string.
[[nodiscard]] std::string fault_of(const std::vector<Region>& regions);

struct ParentLink {
  Id id{};
  Hash digest{};
  std::string place; // as seen from the child's directory

  friend bool operator==(const ParentLink&, const ParentLink&) = default;
};

// One of the small files.
struct FileSum {
  uint64_t bytes = 0;
  uint64_t xxh3 = 0;
  Hash mac{};
};

// A disk of the machine. Its number is its place among them.
struct Disk {
  std::string path; // of its image, on the host of then
  bool read_only = false;
  uint64_t bytes = 0;
  uint64_t changed_unix_ns = 0; // when the image was written last; 0: not known, as of a block device
  std::optional<FileSum> index; // where the image is in the snapshot
};

[[nodiscard]] std::string disk_image_name(size_t number);
[[nodiscard]] std::string disk_index_name(size_t number);

using Names = std::vector<std::pair<std::string, std::string>>;

struct Manifest {
  Id id{};
  std::string vm;
  uint64_t created_unix_ns = 0;
  std::optional<ParentLink> parent; // of an incremental one
  Names host;                       // name and value
  Names patches;                    // name and version
  Encoding encoding = Encoding::kRaw;
  std::vector<Region> regions;
  uint64_t file_bytes = 0; // of the memory file
  uint64_t data_pages = 0;
  uint64_t zero_pages = 0;
  uint64_t parent_pages = 0;
  FileSum machine;
  FileSum state;
  FileSum index;
  std::vector<Disk> disks;
  bool sealed = false;
};

// CONTEXT: any thread; does not block.
[[nodiscard]] std::string write_manifest(const Manifest& manifest);
// RETURNS: kRefused for the first thing that is wrong, with its place; `object` is the file.
[[nodiscard]] std::expected<Manifest, vmm::Error> read_manifest(std::string_view operation, std::string_view object,
                                                                std::string_view text);

struct Seal {
  Hash digest{};
  std::optional<Hash> mac;
};

[[nodiscard]] std::string write_seal(const Seal& seal);
[[nodiscard]] std::expected<Seal, vmm::Error> read_seal(std::string_view operation, std::string_view object,
                                                        std::string_view text);

} // namespace stopvisor::snapshot
