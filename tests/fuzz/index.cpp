// SPDX-License-Identifier: Apache-2.0
// extents.idx of a snapshot of each kind, and the index of a disk's image: what is taken is what was written.
#include <algorithm>
#include <cstring>

#include "tests/fuzz/fuzzer.h"
#include "tests/fuzz/snapshot_seeds.h"
#include "tools/snapshot/disk_image.h"
#include "tools/snapshot/state_file.h"

namespace stopvisor::fuzz {
namespace {

constexpr unsigned kSumsAgree = kKinds;        // the manifest is made to say what the index says
constexpr unsigned kLengthAgrees = 2 * kKinds; // the index is cut or filled to its length
constexpr unsigned kOfDisk = 4 * kKinds;

const snapshot::Disk kDisk{.path = {}, .bytes = (3 << 20) + 512, .index = std::nullopt};

std::vector<snapshot::Extent> extents_in(const Bytes& index) {
  std::vector<snapshot::Extent> extents;
  for (size_t at = sizeof(snapshot::IndexHeader); at + sizeof(snapshot::Extent) <= index.size();
       at += sizeof(snapshot::Extent))
    std::memcpy(&extents.emplace_back(), index.data() + at, sizeof(snapshot::Extent));
  return extents;
}

void agree(snapshot::Manifest& manifest, const Bytes& index) {
  manifest.data_pages = manifest.zero_pages = 0;
  uint64_t end = 0;
  for (const snapshot::Extent& extent : extents_in(index)) {
    manifest.data_pages += extent.data.count();
    manifest.zero_pages += extent.zeros.count();
    end += extent.stored_bytes;
  }
  manifest.parent_pages = (manifest.regions[0].bytes + manifest.regions[1].bytes) / snapshot::kPageBytes -
                          manifest.data_pages - manifest.zero_pages;
  if (manifest.encoding == snapshot::Encoding::kZstd)
    manifest.file_bytes = end;
}

Bytes seed_of(unsigned kind) {
  const snapshot::Manifest manifest = manifest_of(kind);
  std::vector<snapshot::Extent> extents(snapshot::extents_of(snapshot::span_of(manifest.regions)));
  for (uint64_t number = 0; number < extents.size(); ++number) {
    snapshot::Extent& extent = extents[number];
    if (kind & kIncremental)
      continue;
    extent.zeros = snapshot::ram_of(manifest.regions, number);
    if (extent.zeros.empty())
      continue;
    snapshot::PageSet first;
    first.add(0);
    extent.data = first;
    extent.zeros = extent.zeros & ~first;
    extent.data_pages = 1;
    extent.stored_bytes =
        static_cast<uint32_t>(kind & kCompressed ? 100
                                                 : std::min(snapshot::kExtentBytes,
                                                            manifest.file_bytes - number * snapshot::kExtentBytes));
    extent.offset = kind & kCompressed ? (number == 0 ? 0 : 100) : number * snapshot::kExtentBytes;
  }
  return snapshot::write_index(extents);
}

void try_disk(ByteSpan bytes) {
  for (const bool sealed : {false, true})
    if (const auto taken = snapshot::read_disk_index("fuzz", "disk", bytes, kDisk, sealed))
      must(std::ranges::equal(snapshot::write_disk_index(*taken), bytes), "a disk's index that is another one");
}

} // namespace

std::vector<Bytes> seeds() {
  std::vector<Bytes> all;
  for (unsigned kind = 0; kind < kKinds; ++kind)
    for (const unsigned how : {kSumsAgree, kSumsAgree | kLengthAgrees, 0U})
      all.push_back(chosen(kind | how, seed_of(kind)));
  std::vector<snapshot::DiskExtent> disk(4);
  disk[2] = {.xxh3 = 5, .has_data = 1};
  all.push_back(chosen(kOfDisk, snapshot::write_disk_index(disk)));
  return all;
}

void try_one(ByteSpan input) {
  const Choice choice = choice_of(input);
  if (choice.first & kOfDisk)
    return try_disk(choice.rest);
  snapshot::Manifest manifest = manifest_of(choice.first % kKinds);
  Bytes bytes(choice.rest.begin(), choice.rest.end());
  if (choice.first & kLengthAgrees)
    bytes.resize(manifest.index.bytes);
  if (choice.first & kSumsAgree)
    agree(manifest, bytes);
  if (const auto taken = snapshot::read_index("fuzz", "extents.idx", bytes, manifest))
    must(snapshot::write_index(*taken) == bytes, "an index that is another one");
}

} // namespace stopvisor::fuzz
