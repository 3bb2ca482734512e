// SPDX-License-Identifier: Apache-2.0
// Batches of pages that may be anything: they are refused by name, and change nothing outside guest memory.
#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "tests/unit/migrate/batches.h"
#include "tools/migrate/frame.h"
#include "tools/migrate/messages.h"
#include "tools/migrate/page_batch.h"
#include "tools/migrate/page_runs.h"

namespace stopvisor::migrate {
namespace {

using namespace testing;

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
      for (const uint8_t change : kChanges) {
        Bytes payload = batch.payload;
        payload[at] ^= std::byte(change);
        const auto applied = reader.apply("run", batch.flags, payload, memory);
        EXPECT_LE(applied.value_or(0), kFew);
      }
  }
}

} // namespace
} // namespace stopvisor::migrate
