// SPDX-License-Identifier: Apache-2.0
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "tools/migrate/messages.h"
#include "tools/migrate/page_batch.h"
#include "tools/migrate/page_runs.h"
#include "vmm/units.h"

namespace stopvisor::migrate {
namespace {

using ByteSpan = std::span<const std::byte>;
using Reason = std::optional<std::string>; // what is wrong

std::string describe(const PageRun& run) {
  return "has a run of " + std::to_string(run.pages) + " pages at " + vmm::to_hex(run.gpa) + " that ";
}

struct FreeContext {
  void operator()(ZSTD_DCtx* context) const noexcept { ::ZSTD_freeDCtx(context); }
};

Reason check_run(const PageRun& run, const BatchHead& head, uint64_t features, uint64_t& data_pages) {
  if (run.zero != 0 || (run.source != 0 && run.kind != RunKind::kCopies))
    return "has something where there is nothing";
  if (run.gpa % kPageBytes != 0)
    return "does not begin with a page";
  if (run.pages == 0 || run.gpa > kMaxRunEnd || uint64_t{run.pages} * kPageBytes > kMaxRunEnd - run.gpa)
    return "has no pages, or more than there are addresses";
  switch (run.kind) {
  case RunKind::kData:
    data_pages += run.pages;
    return {};
  case RunKind::kZeros:
    if ((features & kFeatureZeroRuns) == 0)
      return "is of zeros, which was not agreed upon";
    return {};
  case RunKind::kCopies:
    if ((features & kFeatureCopies) == 0)
      return "is of copies, which was not agreed upon";
    if (run.source >= head.data_pages)
      return "is a copy of a page that is not in its batch";
    return {};
  }
  return "is of a kind that there is not";
}

} // namespace

struct BatchReader::Parts {
  [[nodiscard]] Reason take_runs(ByteSpan& payload, PageTarget& target);
  [[nodiscard]] Reason check_overlaps();
  [[nodiscard]] Reason take_data(bool compressed, ByteSpan payload);
  [[nodiscard]] Reason put_in_place(PageTarget& target, uint64_t& pages) const;

  uint64_t features = 0;
  BatchHead head;
  std::vector<PageRun> runs;
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  std::vector<std::byte> unpacked;
  std::unique_ptr<ZSTD_DCtx, FreeContext> context;
  ByteSpan data; // whole pages
};

Reason BatchReader::Parts::take_runs(ByteSpan& payload, PageTarget& target) {
  if (payload.size() < sizeof head)
    return "is too short";
  std::memcpy(&head, payload.data(), sizeof head);
  payload = payload.subspan(sizeof head);
  if (head.runs == 0 || head.runs > kBatchRuns || head.data_pages > kBatchPages)
    return "has no runs, too many of them, or too many pages";
  if (payload.size() < head.runs * sizeof(PageRun))
    return "is too short for its runs";
  runs.resize(head.runs);
  std::memcpy(runs.data(), payload.data(), runs.size() * sizeof(PageRun));
  payload = payload.subspan(runs.size() * sizeof(PageRun));
  uint64_t data_pages = 0;
  for (const PageRun& run : runs) {
    Reason wrong = check_run(run, head, features, data_pages);
    if (!wrong && !target.has(vmm::Gpa{run.gpa}, run.pages))
      wrong = "is not all guest memory";
    if (wrong)
      return describe(run) + *wrong;
  }
  if (data_pages != head.data_pages)
    return "has runs of " + std::to_string(data_pages) + " pages, and says that there are " +
           std::to_string(head.data_pages);
  return {};
}

Reason BatchReader::Parts::check_overlaps() {
  ranges.clear();
  for (const PageRun& run : runs)
    ranges.emplace_back(run.gpa, end_of(run));
  if (!std::ranges::is_sorted(ranges))
    std::ranges::sort(ranges);
  for (size_t at = 1; at < ranges.size(); ++at)
    if (ranges[at].first < ranges[at - 1].second)
      return "has the page at " + vmm::to_hex(ranges[at].first) + " twice";
  return {};
}

Reason BatchReader::Parts::take_data(bool compressed, ByteSpan payload) {
  const size_t size = head.data_pages * kPageBytes;
  if (!compressed) {
    data = payload;
    if (data.size() != size)
      return "has " + std::to_string(data.size()) + " bytes of pages instead of " + std::to_string(size);
    return {};
  }
  if ((features & kFeatureZstd) == 0)
    return "is compressed, which was not agreed upon";
  if (size == 0)
    return "has compressed pages, and none";
  if (context == nullptr)
    context.reset(::ZSTD_createDCtx());
  if (context == nullptr)
    return "cannot be decompressed: no memory";
  // One frame, of this size: what it says is checked before, what it holds by the room there is.
  if (::ZSTD_getFrameContentSize(payload.data(), payload.size()) != size ||
      ::ZSTD_findFrameCompressedSize(payload.data(), payload.size()) != payload.size())
    return "has no zstd frame of " + std::to_string(size) + " bytes";
  unpacked.resize(kBatchBytes);
  if (::ZSTD_decompressDCtx(context.get(), unpacked.data(), size, payload.data(), payload.size()) != size)
    return "has a zstd frame that is damaged";
  data = ByteSpan(unpacked).first(size);
  return {};
}

// Only a target that breaks its word makes this fail.
Reason BatchReader::Parts::put_in_place(PageTarget& target, uint64_t& pages) const {
  size_t next = 0;
  for (const PageRun& run : runs) {
    const size_t size = run.pages * kPageBytes;
    pages += run.pages;
    if (run.kind == RunKind::kZeros) {
      if (!target.zero(vmm::Gpa{run.gpa}, run.pages))
        return describe(run) + "cannot be put in place";
      continue;
    }
    const std::span<std::byte> to = target.pages(vmm::Gpa{run.gpa}, run.pages);
    if (to.size() != size)
      return describe(run) + "cannot be put in place";
    if (run.kind == RunKind::kData) {
      std::memcpy(to.data(), data.data() + next, size);
      next += size;
    } else {
      for (size_t at = 0; at < size; at += kPageBytes)
        std::memcpy(to.data() + at, data.data() + run.source * kPageBytes, kPageBytes);
    }
  }
  return {};
}

BatchReader::BatchReader(uint64_t features) : parts_(std::make_unique<Parts>()) {
  parts_->features = features;
}
BatchReader::~BatchReader() = default;

std::expected<uint64_t, vmm::Error> BatchReader::apply(std::string_view operation, uint16_t flags, ByteSpan payload,
                                                       PageTarget& target) {
  Parts& parts = *parts_;
  Reason wrong = (flags & ~kFlagZstd) != 0 ? Reason("has flags that there are not") : Reason();
  if (!wrong)
    wrong = parts.take_runs(payload, target);
  if (!wrong)
    wrong = parts.check_overlaps();
  if (!wrong)
    wrong = parts.take_data((flags & kFlagZstd) != 0, payload);
  uint64_t pages = 0;
  if (!wrong)
    wrong = parts.put_in_place(target, pages);
  if (wrong)
    return std::unexpected(
        vmm::Error{std::string(operation), "a batch of pages", std::move(*wrong), vmm::Status::kRefused});
  return pages;
}

} // namespace stopvisor::migrate
