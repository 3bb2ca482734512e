// SPDX-License-Identifier: Apache-2.0
// The numbers and structures of a snapshot's files, as docs/reference/snapshot-format.md has them.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace stopvisor::snapshot {

static_assert(std::endian::native == std::endian::little, "the files are little-endian, and copied as they are");

inline constexpr uint64_t kFormat = 1;
inline constexpr uint64_t kFormatWithDisks = 2; // the same, and what is said of disks

inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kSealName[] = "seal";
inline constexpr char kMachineName[] = "machine.dtb";
inline constexpr char kStateName[] = "state.bin";
inline constexpr char kIndexName[] = "extents.idx";
inline constexpr char kRawName[] = "memory.raw";
inline constexpr char kZstdName[] = "memory.zst";
inline constexpr char kPartialSuffix[] = ".stopvisor-partial";

inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kExtentBytes = 1 << 20;
inline constexpr size_t kExtentPages = kExtentBytes / kPageBytes;
inline constexpr uint64_t kRegionAlignment = 2 << 20; // of a region's offset: what huge pages need
inline constexpr uint64_t kMaxFrameBytes = kExtentBytes + 8192;

inline constexpr uint64_t kMaxManifestBytes = 1 << 20;
inline constexpr uint64_t kMaxMachineBytes = 2 << 20;
inline constexpr uint64_t kMaxStateBytes = 256 << 20;
inline constexpr uint64_t kMaxSpan = 1ULL << 40;
inline constexpr size_t kMaxSections = 65536;
inline constexpr size_t kMaxRegions = 64;
inline constexpr size_t kMaxChain = 64;
inline constexpr size_t kMaxDisks = 64;
inline constexpr uint64_t kMaxDiskBytes = 4ULL << 40;

using Id = std::array<std::byte, 16>;
using Hash = std::array<std::byte, 32>; // a digest or a MAC

// Pages of one extent: page n is bit n % 8 of byte n / 8.
class PageSet {
public:
  [[nodiscard]] bool has(size_t page) const noexcept { return (words_[page / 64] >> (page % 64) & 1) != 0; }
  void add(size_t page) noexcept { words_[page / 64] |= uint64_t{1} << (page % 64); }
  // Those of [first, first + pages), which end within the set.
  void add(size_t first, size_t pages) noexcept {
    for (size_t end = first + pages; first < end;) {
      const size_t bit = first % 64;
      const size_t now = std::min(end - first, 64 - bit);
      words_[first / 64] |= ~uint64_t{0} >> (64 - now) << bit;
      first += now;
    }
  }
  [[nodiscard]] size_t count() const noexcept {
    size_t sum = 0;
    for (const uint64_t word : words_)
      sum += static_cast<size_t>(std::popcount(word));
    return sum;
  }
  [[nodiscard]] bool empty() const noexcept { return words_ == decltype(words_){}; }
  [[nodiscard]] PageSet operator|(const PageSet& other) const noexcept { return join(other, 0); }
  [[nodiscard]] PageSet operator&(const PageSet& other) const noexcept {
    PageSet both;
    for (size_t i = 0; i < words_.size(); ++i)
      both.words_[i] = words_[i] & other.words_[i];
    return both;
  }
  [[nodiscard]] PageSet operator~() const noexcept { return PageSet{}.join(*this, ~uint64_t{0}); }
  friend bool operator==(const PageSet&, const PageSet&) = default;

  // Calls run(first page, pages) for each run of pages, by their order, until it returns false.
  template <typename Run>
  bool for_runs(Run&& run) const {
    for (size_t page = 0; page < kExtentPages;) {
      if (!has(page)) {
        ++page;
        continue;
      }
      const size_t first = page;
      while (page < kExtentPages && has(page))
        ++page;
      if (!run(first, page - first))
        return false;
    }
    return true;
  }

private:
  [[nodiscard]] PageSet join(const PageSet& other, uint64_t flip) const noexcept {
    PageSet joined;
    for (size_t i = 0; i < words_.size(); ++i)
      joined.words_[i] = words_[i] | (other.words_[i] ^ flip);
    return joined;
  }

  std::array<uint64_t, kExtentPages / 64> words_{};
};

// One entry of extents.idx, as it is in the file.
struct Extent {
  uint64_t offset = 0;
  uint32_t stored_bytes = 0;
  uint32_t data_pages = 0;
  uint64_t xxh3 = 0;
  uint64_t frame_xxh3 = 0; // of its bytes in memory.zst: a frame has bits that no decoder looks at
  PageSet data;
  PageSet zeros;
  Hash mac{};

  friend bool operator==(const Extent&, const Extent&) = default;
};
static_assert(sizeof(Extent) == 128 && sizeof(PageSet) == 32);

struct IndexHeader {
  std::array<char, 8> magic{'S', 'V', 'I', 'N', 'D', 'E', 'X', '1'};
  uint32_t extent_bytes = kExtentBytes;
  uint32_t page_bytes = kPageBytes;
  uint64_t extents = 0;
  uint64_t zero = 0;

  friend bool operator==(const IndexHeader&, const IndexHeader&) = default;
};
static_assert(sizeof(IndexHeader) == 32);

// One entry of the index of a disk's image, as it is in the file.
struct DiskExtent {
  uint64_t xxh3 = 0;
  uint32_t has_data = 0; // 1; 0: all zeros, and so is this entry
  uint32_t zero = 0;
  Hash mac{};

  friend bool operator==(const DiskExtent&, const DiskExtent&) = default;
};
static_assert(sizeof(DiskExtent) == 48);

struct DiskIndexHeader {
  std::array<char, 8> magic{'S', 'V', 'D', 'I', 'S', 'K', 'X', '1'};
  uint32_t extent_bytes = kExtentBytes;
  uint32_t zero = 0;
  uint64_t extents = 0;
  uint64_t zero_too = 0;

  friend bool operator==(const DiskIndexHeader&, const DiskIndexHeader&) = default;
};
static_assert(sizeof(DiskIndexHeader) == 32);

struct StateHeader {
  std::array<char, 8> magic{'S', 'V', 'S', 'T', 'A', 'T', 'E', '1'};
  uint32_t sections = 0;
  uint32_t zero = 0;
};
static_assert(sizeof(StateHeader) == 16);

struct SectionHeader {
  uint32_t kind = 0;
  uint32_t version = 0;
  uint32_t instance = 0;
  uint32_t zero = 0;
  uint64_t length = 0;
  uint64_t xxh3 = 0;
};
static_assert(sizeof(SectionHeader) == 32);

inline constexpr uint64_t kMaxDiskIndexBytes =
    sizeof(DiskIndexHeader) + kMaxDiskBytes / kExtentBytes * sizeof(DiskExtent);
inline constexpr uint64_t kMaxIndexBytes = sizeof(IndexHeader) + kMaxSpan / kExtentBytes * sizeof(Extent);

} // namespace stopvisor::snapshot
