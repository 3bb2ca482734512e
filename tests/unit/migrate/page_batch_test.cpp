// SPDX-License-Identifier: Apache-2.0
// Pages in batches: they come as they were, and what need not be sent is not.
#include <algorithm>
#include <array>
#include <cstring>

#include "tests/unit/migrate/batches.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/page_batch.h"
#include "tools/migrate/page_runs.h"

namespace stopvisor::migrate {
namespace {

using namespace testing;

// Sends `from` whole, in as many batches as that takes. RETURNS: how many.
size_t send_all(BatchWriter& writer, Memory& from, BatchReader& reader, Memory& to) {
  size_t batches = 0;
  const auto flush = [&] {
    const Batch batch = finish(writer);
    const auto applied = reader.apply("test", batch.flags, batch.payload, to);
    EXPECT_TRUE(applied) << applied.error().message();
    EXPECT_EQ(applied.value_or(0), batch.pages);
    ++batches;
  };
  for (size_t page = 0; page < kPages; ++page)
    if (!writer.add(gpa_of(page), page, from.page(page))) {
      flush();
      EXPECT_TRUE(writer.add(gpa_of(page), page, from.page(page)));
    }
  if (!writer.empty())
    flush();
  return batches;
}

// Of every sort: data, zeros, and the same one again and again.
void fill_mixed(Memory& memory) {
  memory.bytes = pattern(memory.bytes.size(), 7);
  for (size_t page = 0; page < kPages; ++page)
    if (page % 5 == 1 || page % 700 > 500)
      memory.fill(page, 0);
    else if (page % 5 == 2)
      memory.fill(page, static_cast<unsigned>(page % 3));
}

TEST(PageBatch, MemoryComesAsItWas) {
  for (const int level : {0, 1})
    for (const uint64_t features : {uint64_t{kOurFeatures}, uint64_t{kFeatureZeroRuns}, uint64_t{kFeatureCopies},
                                    uint64_t{kFeatureZstd}, uint64_t{0}}) {
      Memory from;
      fill_mixed(from);
      SentPages sent(kPages);
      BatchWriter writer(&sent, level, features);
      BatchReader reader(features);
      Memory to;
      to.bytes = pattern(to.bytes.size(), 9);
      send_all(writer, from, reader, to);
      EXPECT_TRUE(from.bytes == to.bytes) << level << " " << features;
      EXPECT_EQ(writer.figures().looked_at, kPages);
      EXPECT_EQ(writer.figures().zeros + writer.figures().copies + writer.figures().sent, kPages);
      EXPECT_EQ(writer.figures().zeros > 0, (features & kFeatureZeroRuns) != 0);
      EXPECT_EQ(writer.figures().copies > 0, (features & kFeatureCopies) != 0);
    }
}

TEST(PageBatch, WhatIsUnchangedIsNotSentAgain) {
  Memory from;
  fill_mixed(from);
  SentPages sent(kPages);
  BatchWriter writer(&sent, 0);
  BatchReader reader;
  Memory to;
  send_all(writer, from, reader, to);
  const uint64_t before = writer.figures().bytes;
  EXPECT_EQ(send_all(writer, from, reader, to), 0U);
  EXPECT_EQ(writer.figures().unchanged, kPages);
  EXPECT_EQ(writer.figures().bytes, before);
  from.page(5)[77] ^= std::byte(1);
  EXPECT_EQ(send_all(writer, from, reader, to), 1U);
  EXPECT_TRUE(from.bytes == to.bytes);
}

TEST(PageBatch, ZerosThenDataThenZerosAreAllSent) {
  Memory from;
  Memory to;
  to.bytes = pattern(to.bytes.size(), 3); // whatever was there
  SentPages sent(kPages);
  BatchWriter writer(&sent, 0);
  BatchReader reader;
  send_all(writer, from, reader, to);
  EXPECT_TRUE(from.bytes == to.bytes);
  EXPECT_EQ(writer.figures().zeros, kPages);
  fill_mixed(from);
  send_all(writer, from, reader, to);
  EXPECT_TRUE(from.bytes == to.bytes);
  std::ranges::fill(from.bytes, std::byte(0));
  send_all(writer, from, reader, to);
  EXPECT_TRUE(from.bytes == to.bytes);
}

TEST(PageBatch, SentPagesKnowsNothingOfWhatWasNeverSent) {
  SentPages sent(2);
  const std::array<std::byte, kPageBytes> zeros{};
  const Bytes data = pattern(kPageBytes);
  const std::span<const std::byte, kPageBytes> page(data.data(), kPageBytes);
  EXPECT_FALSE(sent.unchanged(0, zeros)); // zeros are a content like any other
  EXPECT_TRUE(sent.unchanged(0, zeros));
  EXPECT_TRUE(sent.unchanged(0, sent.hash_of_zeros()));
  EXPECT_FALSE(sent.unchanged(0, page));
  EXPECT_TRUE(sent.unchanged(0, page));
  EXPECT_FALSE(sent.unchanged(0, zeros));
  EXPECT_FALSE(sent.unchanged(1, page));
  EXPECT_FALSE(sent.unchanged(2, page)); // there is no such page
  EXPECT_FALSE(sent.unchanged(2, page));
  EXPECT_NE(sent.hash_of(page), SentPages::Hash{});
  EXPECT_EQ(sent.hash_of(page).low % 2, 1U);                 // so no content has the hash of nothing
  EXPECT_NE(sent.hash_of(page), SentPages(2).hash_of(page)); // the secret is of this migration
}

TEST(PageBatch, RunsJoinAndEndWhereMemoryDoes) {
  Memory from;
  from.bytes = pattern(from.bytes.size(), 7);
  BatchWriter writer(nullptr, 0);
  EXPECT_TRUE(writer.empty());
  EXPECT_TRUE(finish(writer).payload.empty());
  for (const size_t page : {0, 1, 2, 7, 8, 4})
    ASSERT_TRUE(writer.add(gpa_of(page), page, from.page(page)));
  EXPECT_FALSE(writer.empty());
  const Batch batch = finish(writer);
  EXPECT_TRUE(writer.empty());
  BatchHead head;
  std::memcpy(&head, batch.payload.data(), sizeof head);
  EXPECT_EQ(head.runs, 3U);
  EXPECT_EQ(head.data_pages, 6U);
  EXPECT_EQ(batch.pages, 6U);
  EXPECT_EQ(batch.payload.size(), 8 + 3 * 16 + 6 * kPageBytes);
  Memory to;
  BatchReader reader;
  EXPECT_EQ(reader.apply("test", batch.flags, batch.payload, to).value(), 6U);
  for (const size_t page : {0, 1, 2, 7, 8, 4})
    EXPECT_EQ(std::memcmp(to.page(page), from.page(page), kPageBytes), 0);
}

TEST(PageBatch, MemoryIsAskedForWhatIsWrittenAlone) {
  Memory from(kFew);
  BatchWriter writer(nullptr, 0);
  for (size_t page = 0; page < 8; ++page)
    ASSERT_TRUE(writer.add(gpa_of(page), page, from.page(page)));
  const Batch zeros = finish(writer);
  Memory to(kFew);
  BatchReader reader;
  EXPECT_EQ(reader.apply("test", zeros.flags, zeros.payload, to).value(), 8U);
  EXPECT_EQ(to.zeroed, 1);
  EXPECT_EQ(to.written, 0); // so a target can leave alone what was never written
}

TEST(PageBatch, FullBatchesTakeNothingMore) {
  Memory from;
  from.bytes = pattern(from.bytes.size(), 7);
  SentPages sent(kPages);
  BatchWriter data(&sent, 0);
  for (size_t page = 0; page < kBatchPages; ++page)
    ASSERT_TRUE(data.add(gpa_of(page), page, from.page(page)));
  EXPECT_FALSE(data.add(gpa_of(kBatchPages), kBatchPages, from.page(kBatchPages)));
  EXPECT_EQ(data.figures().looked_at, kBatchPages);
  EXPECT_EQ(finish(data).pages, kBatchPages);
  EXPECT_TRUE(data.add(gpa_of(kBatchPages), kBatchPages, from.page(kBatchPages))); // it was not noted as sent
  EXPECT_EQ(finish(data).pages, 1U);
  std::ranges::fill(from.bytes, std::byte(0));
  BatchWriter zeros(nullptr, 0);
  for (size_t page = 0; page < kBatchRuns; ++page) // no two side by side
    ASSERT_TRUE(zeros.add(gpa_of(2 * page), 2 * page, from.page(2 * page)));
  EXPECT_FALSE(zeros.add(gpa_of(1), 1, from.page(1)));
  EXPECT_EQ(finish(zeros).pages, kBatchRuns);
}

TEST(PageBatch, ZerosAreCheckedInEveryByte) {
  Memory memory(1);
  BatchWriter writer(nullptr, 0);
  for (size_t at = 0; at < kPageBytes; ++at) {
    memory.page(0)[at] = std::byte(1);
    ASSERT_TRUE(writer.add(gpa_of(0), 0, memory.page(0)));
    memory.page(0)[at] = std::byte(0);
    ASSERT_EQ(writer.figures().zeros, 0U) << at;
    (void)finish(writer);
  }
}

} // namespace
} // namespace stopvisor::migrate
