// SPDX-License-Identifier: Apache-2.0
// Pages in batches: they come as they were, and a batch that may be anything changes nothing outside guest memory.
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "tests/unit/migrate/links.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/page_batch.h"
#include "tools/migrate/page_runs.h"

namespace stopvisor::migrate {
namespace {

using testing::Bytes;
using testing::pattern;
using vmm::Gpa;

constexpr uint64_t kBase = 0x10'0000;
constexpr size_t kPages = 2'048; // of what is sent
constexpr size_t kFew = 64;      // of what is written to by who knows whom

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

Gpa gpa_of(size_t page) {
  return Gpa{kBase + page * kPageBytes};
}

// A payload in one piece, as it comes.
struct Batch {
  uint16_t flags = 0;
  Bytes payload;
  uint64_t pages = 0;
};
Batch finish(BatchWriter& writer) {
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

// --- batches that may be anything ---

Bytes payload_of(const std::vector<PageRun>& runs, uint32_t data_pages, const Bytes& data) {
  const BatchHead head{.runs = static_cast<uint32_t>(runs.size()), .data_pages = data_pages};
  Bytes payload(sizeof head + runs.size() * sizeof(PageRun));
  std::memcpy(payload.data(), &head, sizeof head);
  std::memcpy(payload.data() + sizeof head, runs.data(), runs.size() * sizeof(PageRun));
  payload.insert(payload.end(), data.begin(), data.end());
  return payload;
}

// The reason of the refusal; "taken" where there is none. Memory is as it was in the first case.
std::string refusal(const Bytes& payload, uint16_t flags = 0, uint64_t features = kOurFeatures) {
  Memory memory(kFew);
  memory.bytes = pattern(memory.bytes.size(), 3);
  const Bytes before = memory.bytes;
  BatchReader reader(features);
  const auto applied = reader.apply("run", flags, payload, memory);
  if (applied)
    return "taken";
  EXPECT_EQ(applied.error().status, vmm::Status::kRefused);
  EXPECT_EQ(applied.error().operation, "run");
  EXPECT_TRUE(memory.bytes == before) << applied.error().reason;
  EXPECT_EQ(memory.zeroed + memory.written, 0) << applied.error().reason;
  return applied.error().reason;
}

PageRun run(uint64_t gpa, uint32_t pages, RunKind kind = RunKind::kZeros, uint16_t source = 0) {
  return {.gpa = gpa, .pages = pages, .kind = kind, .zero = 0, .source = source};
}
std::string refusal_of(const PageRun& one, const Bytes& data = {}) {
  return refusal(payload_of({one}, static_cast<uint32_t>(data.size() / kPageBytes), data));
}

TEST(PageBatch, RunsThatCannotBeAreNamed) {
  const Bytes page = pattern(kPageBytes);
  EXPECT_EQ(refusal_of(run(kBase, kFew)), "taken");
  EXPECT_EQ(refusal_of(run(kBase - kPageBytes, 2)), "has a run of 2 pages at 0xff000 that is not all guest memory");
  EXPECT_EQ(refusal_of(run(kBase, kFew + 1)), "has a run of 65 pages at 0x100000 that is not all guest memory");
  EXPECT_EQ(refusal_of(run(kBase, 0)),
            "has a run of 0 pages at 0x100000 that has no pages, or more than there are addresses");
  EXPECT_EQ(refusal_of(run(kBase + 1, 1)), "has a run of 1 pages at 0x100001 that does not begin with a page");
  EXPECT_EQ(refusal_of(run(~0ULL << 12, 2)),
            "has a run of 2 pages at 0xfffffffffffff000 that has no pages, or more than there are addresses");
  EXPECT_EQ(refusal_of(run(kMaxRunEnd - kPageBytes, UINT32_MAX)),
            "has a run of 4294967295 pages at 0xffffffffff000 that has no pages, or more than there are addresses");
  EXPECT_EQ(refusal_of(run(kBase, 1, RunKind(3))),
            "has a run of 1 pages at 0x100000 that is of a kind that there is not");
  EXPECT_EQ(refusal_of(run(kBase, 1, RunKind::kZeros, 1)),
            "has a run of 1 pages at 0x100000 that has something where there is nothing");
  PageRun odd = run(kBase, 1);
  odd.zero = 1;
  EXPECT_EQ(refusal_of(odd), "has a run of 1 pages at 0x100000 that has something where there is nothing");
  EXPECT_EQ(refusal_of(run(kBase, 1, RunKind::kCopies)),
            "has a run of 1 pages at 0x100000 that is a copy of a page that is not in its batch");
  EXPECT_EQ(refusal_of(run(kBase, 1, RunKind::kData), page), "taken");
  EXPECT_EQ(refusal_of(run(kBase, 2, RunKind::kData), page), "has runs of 2 pages, and says that there are 1");
}

TEST(PageBatch, OverlapsAreRefusedInAnyOrder) {
  const auto pair = [](const PageRun& one, const PageRun& other) {
    return refusal(payload_of({one, other}, 0, {}));
  };
  const std::string twice = "has the page at 0x101000 twice";
  EXPECT_EQ(pair(run(kBase, 2), run(kBase + kPageBytes, 1)), twice);
  EXPECT_EQ(pair(run(kBase + kPageBytes, 1), run(kBase, 2)), twice);
  EXPECT_EQ(pair(run(kBase, 9), run(kBase + kPageBytes, 1)), twice);
  EXPECT_EQ(pair(run(kBase + kPageBytes, 5), run(kBase + kPageBytes, 5)), twice);
  EXPECT_EQ(pair(run(kBase + kPageBytes, 1), run(kBase, 1)), "taken");
  EXPECT_EQ(pair(run(kBase, 1), run(kBase + kPageBytes, 1)), "taken");
}

TEST(PageBatch, CountsThatCannotBeAreNamed) {
  EXPECT_EQ(refusal({}), "is too short");
  EXPECT_EQ(refusal(Bytes(7)), "is too short");
  const std::string counts = "has no runs, too many of them, or too many pages";
  EXPECT_EQ(refusal(Bytes(8)), counts);
  EXPECT_EQ(refusal(payload_of({run(kBase, 1)}, kBatchPages + 1, {})), counts);
  EXPECT_EQ(refusal(payload_of(std::vector<PageRun>(kBatchRuns + 1, run(kBase, 1)), 0, {})), counts);
  Bytes short_of_runs = payload_of({run(kBase, 1), run(kBase + 4096, 1)}, 0, {});
  short_of_runs.pop_back();
  EXPECT_EQ(refusal(short_of_runs), "is too short for its runs");
  EXPECT_EQ(refusal(payload_of({run(kBase, 1)}, 0, Bytes(1))), "has 1 bytes of pages instead of 0");
  EXPECT_EQ(refusal(payload_of({run(kBase, 1, RunKind::kData)}, 1, Bytes(kPageBytes - 1))),
            "has 4095 bytes of pages instead of 4096");
  EXPECT_EQ(refusal(payload_of({run(kBase, 1, RunKind::kData)}, 1, Bytes(kPageBytes + 1))),
            "has 4097 bytes of pages instead of 4096");
  EXPECT_EQ(refusal(payload_of({run(kBase, 1)}, 0, {}), 2), "has flags that there are not");
}

Bytes packed(size_t bytes, int level = 3) {
  const Bytes plain(bytes, std::byte(7));
  Bytes frame(::ZSTD_compressBound(bytes));
  frame.resize(::ZSTD_compress(frame.data(), frame.size(), plain.data(), plain.size(), level));
  return frame;
}

TEST(PageBatch, CompressedPagesAreOneFrameOfTheirSize) {
  const auto refusal_with = [](const Bytes& frame, uint64_t features = kOurFeatures) {
    return refusal(payload_of({run(kBase, 2, RunKind::kData)}, 2, frame), kFlagZstd, features);
  };
  const std::string none = "has no zstd frame of 8192 bytes";
  const Bytes good = packed(2 * kPageBytes);
  EXPECT_EQ(refusal_with(good), "taken");
  EXPECT_EQ(refusal_with(good, kOurFeatures & ~kFeatureZstd), "is compressed, which was not agreed upon");
  EXPECT_EQ(refusal_with(packed(2 * kPageBytes - 1)), none);
  EXPECT_EQ(refusal_with(packed(64 << 20)), none); // much more than it may be
  EXPECT_EQ(refusal_with({}), none);
  EXPECT_EQ(refusal_with(pattern(100)), none);
  Bytes two = good;
  two.insert(two.end(), good.begin(), good.end());
  EXPECT_EQ(refusal_with(two), none);
  Bytes behind = good;
  behind.push_back(std::byte(0));
  EXPECT_EQ(refusal_with(behind), none);
  EXPECT_EQ(refusal(payload_of({run(kBase, 2)}, 0, packed(0)), kFlagZstd), "has compressed pages, and none");
  // A frame that says the right size, and holds more.
  Bytes liar = packed(3 * kPageBytes);
  const Bytes honest = packed(2 * kPageBytes);
  std::copy(honest.begin(), honest.begin() + 7, liar.begin()); // magic, descriptor and size
  const std::string lie = refusal_with(liar);
  EXPECT_TRUE(lie == "has a zstd frame that is damaged" || lie == none) << lie;
}

TEST(PageBatch, WhatWasNotAgreedUponIsRefused) {
  EXPECT_NE(refusal(payload_of({run(kBase, 1)}, 0, {}), 0, 0).find("zeros, which was not agreed upon"),
            std::string::npos);
  const Bytes copies =
      payload_of({run(kBase, 1, RunKind::kData), run(kBase + 4096, 1, RunKind::kCopies)}, 1, pattern(kPageBytes));
  EXPECT_EQ(refusal(copies), "taken");
  EXPECT_NE(refusal(copies, 0, 0).find("copies, which was not agreed upon"), std::string::npos);
}

// A small batch with each sort of run in it.
Batch small_batch(int level) {
  Memory from(kFew);
  const Bytes text = pattern(64);
  for (size_t at = 0; at < 3 * kPageBytes; ++at)
    from.bytes[at] = text[at % (at / kPageBytes == 0 ? 61 : 64)]; // page 2 is as page 1
  BatchWriter writer(nullptr, level);
  for (size_t page = 0; page < 4; ++page)
    EXPECT_TRUE(writer.add(gpa_of(page), page, from.page(page)));
  EXPECT_EQ(writer.figures().copies, 1U);
  EXPECT_EQ(writer.figures().zeros, 1U);
  return finish(writer);
}

TEST(PageBatch, CutOffAnywhereIsRefused) {
  for (const int level : {0, 3}) {
    const Batch batch = small_batch(level);
    EXPECT_EQ(batch.flags, level != 0 ? kFlagZstd : 0);
    EXPECT_EQ(refusal(batch.payload, batch.flags), "taken");
    Memory memory(kFew);
    BatchReader reader;
    for (size_t length = 0; length < batch.payload.size(); ++length)
      EXPECT_FALSE(reader.apply("run", batch.flags, std::span(batch.payload).first(length), memory)) << length;
    EXPECT_TRUE(std::ranges::all_of(memory.bytes, [](std::byte byte) { return byte == std::byte(0); }));
  }
}

// What follows the runs can be anything; what comes before is refused or puts pages where memory is.
TEST(PageBatch, AnyByteChangedWritesNothingOutside) {
  for (const int level : {0, 3}) {
    const Batch batch = small_batch(level);
    const size_t bytes = level != 0 ? batch.payload.size() : sizeof(BatchHead) + 3 * sizeof(PageRun);
    Memory memory(kFew); // ASan looks on
    BatchReader reader;
    for (size_t at = 0; at < bytes; ++at)
      for (const uint8_t change : testing::kChanges) {
        Bytes payload = batch.payload;
        payload[at] ^= std::byte(change);
        const auto applied = reader.apply("run", batch.flags, payload, memory);
        EXPECT_LE(applied.value_or(0), kFew);
      }
  }
}

} // namespace
} // namespace stopvisor::migrate
