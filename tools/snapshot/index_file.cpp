// SPDX-License-Identifier: Apache-2.0
// Writes and reads extents.idx.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "tools/snapshot/state_file.h"

namespace stopvisor::snapshot {
namespace {

struct Sums {
  uint64_t data = 0;
  uint64_t zeros = 0;
  uint64_t parents = 0;
};

// RETURNS: what is wrong with an entry, or an empty string.
std::string fault_of(const Extent& entry, uint64_t number, const Manifest& manifest, Sums& sums) {
  const PageSet ram = ram_of(manifest.regions, number);
  const PageSet own = entry.data | entry.zeros;
  if (!(entry.data & entry.zeros).empty() || !(own & ~ram).empty())
    return "has pages that cannot be";
  if (!manifest.parent && !(own == ram))
    return "lacks pages, and there is no parent";
  if (entry.data.count() != entry.data_pages)
    return "has a number of pages that is not that of its bitmap";
  sums.data += entry.data_pages;
  sums.zeros += entry.zeros.count();
  sums.parents += ram.count() - own.count();
  if (entry.data_pages == 0)
    return entry.offset == 0 && entry.stored_bytes == 0 && entry.xxh3 == 0 && entry.frame_xxh3 == 0 &&
                   entry.mac == Hash{}
               ? ""
               : "has no pages, but bytes or checksums of them";
  if (!manifest.sealed && entry.mac != Hash{})
    return "has a MAC, and the snapshot is not sealed";
  if (manifest.encoding == Encoding::kZstd)
    return entry.stored_bytes > 0 && entry.stored_bytes <= kMaxFrameBytes ? "" : "has a frame of a wrong length";
  const uint64_t begin = number * kExtentBytes;
  return entry.offset == begin && entry.frame_xxh3 == 0 &&
                 entry.stored_bytes == std::min(kExtentBytes, manifest.file_bytes - begin)
             ? ""
             : "is not at its place";
}

// RETURNS: whether the frames fill the file, each byte once.
bool frames_tile(const std::vector<Extent>& extents, uint64_t file_bytes) {
  std::vector<std::pair<uint64_t, uint64_t>> frames;
  for (const Extent& entry : extents)
    if (entry.data_pages != 0)
      frames.emplace_back(entry.offset, entry.stored_bytes);
  std::ranges::sort(frames);
  uint64_t end = 0;
  for (const auto& [offset, bytes] : frames) {
    if (offset != end)
      return false;
    end += bytes;
  }
  return end == file_bytes;
}

} // namespace

std::vector<std::byte> write_index(const std::vector<Extent>& extents) {
  std::vector<std::byte> bytes(sizeof(IndexHeader) + extents.size() * sizeof(Extent));
  const IndexHeader header{.extents = extents.size()};
  std::memcpy(bytes.data(), &header, sizeof(header));
  if (!extents.empty())
    std::memcpy(bytes.data() + sizeof(header), extents.data(), extents.size() * sizeof(Extent));
  return bytes;
}

std::expected<std::vector<Extent>, vmm::Error> read_index(std::string_view operation, std::string_view object,
                                                          ByteSpan bytes, const Manifest& manifest) {
  const auto wrong = [&](std::string reason) {
    return std::unexpected(
        vmm::Error{std::string(operation), std::string(object), std::move(reason), vmm::Status::kRefused});
  };
  const uint64_t count = extents_of(span_of(manifest.regions));
  IndexHeader header;
  if (bytes.size() != sizeof(header) + count * sizeof(Extent))
    return wrong("has not the length that the memory wants");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header != IndexHeader{.extents = count})
    return wrong("is not an index of format 1 for this memory");
  std::vector<Extent> extents;
  extents.reserve(count); // not cleared first, as the touch of a new page costs more than its entries
  Sums sums;
  for (uint64_t number = 0; number < count; ++number) {
    Extent& entry = extents.emplace_back();
    std::memcpy(&entry, bytes.data() + sizeof(header) + number * sizeof(Extent), sizeof(Extent));
    if (const std::string fault = fault_of(entry, number, manifest, sums); !fault.empty())
      return wrong("extent " + std::to_string(number) + " " + fault);
  }
  if (sums.data != manifest.data_pages || sums.zeros != manifest.zero_pages ||
      sums.parents != manifest.parent_pages)
    return wrong("has other numbers of pages than the manifest says");
  if (manifest.encoding == Encoding::kZstd && !frames_tile(extents, manifest.file_bytes))
    return wrong("has frames that overlap, or leave a gap");
  return extents;
}

} // namespace stopvisor::snapshot
