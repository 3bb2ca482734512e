// SPDX-License-Identifier: Apache-2.0
// Guest memory without a guest, and batches of its pages, for tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <gtest/gtest.h>

#include "tests/unit/migrate/links.h"
#include "tools/migrate/frame.h"
#include "tools/migrate/page_batch.h"

namespace stopvisor::migrate::testing {

using vmm::Gpa;

inline constexpr uint64_t kBase = 0x10'0000;
inline constexpr size_t kPages = 2'048; // of what is sent
inline constexpr size_t kFew = 64;      // of what is written to by who knows whom

// Guest memory of one region.
class Memory : public PageTarget {
public:
  explicit Memory(size_t count = kPages) : bytes(count * kPageBytes) {}
  bool has(Gpa gpa, uint64_t pages) noexcept override { return !find(gpa, pages).empty(); }
  std::span<std::byte> pages(Gpa gpa, uint64_t pages) noexcept override {
    ++written;
    return find(gpa, pages);
  }
  [[nodiscard]] std::span<std::byte> find(Gpa gpa, uint64_t pages) noexcept {
    const size_t all = bytes.size() / kPageBytes;
    if (gpa.value < kBase || pages > all || (gpa.value - kBase) / kPageBytes > all - pages)
      return {};
    return std::span(bytes).subspan(gpa.value - kBase, pages * kPageBytes);
  }
  bool zero(Gpa gpa, uint64_t count) noexcept override {
    ++zeroed;
    const auto range = find(gpa, count);
    std::ranges::fill(range, std::byte(0));
    return !range.empty();
  }
  [[nodiscard]] std::byte* page(size_t number) { return bytes.data() + number * kPageBytes; }
  void fill(size_t number, unsigned value) { std::memset(page(number), static_cast<int>(value), kPageBytes); }

  Bytes bytes;
  int zeroed = 0;  // calls
  int written = 0; // calls
};

inline Gpa gpa_of(size_t page) {
  return Gpa{kBase + page * kPageBytes};
}

// A payload in one piece, as it comes.
struct Batch {
  uint16_t flags = 0;
  Bytes payload;
  uint64_t pages = 0;
};
inline Batch finish(BatchWriter& writer) {
  const auto made = writer.finish();
  EXPECT_TRUE(made);
  Batch batch;
  batch.flags = made->flags;
  batch.pages = made->pages;
  for (const auto part : made->parts)
    batch.payload.insert(batch.payload.end(), part.begin(), part.end());
  EXPECT_LE(batch.payload.size(), kMaxPagesPayload);
  return batch;
}

} // namespace stopvisor::migrate::testing
