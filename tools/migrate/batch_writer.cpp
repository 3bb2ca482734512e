// SPDX-License-Identifier: Apache-2.0
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "tools/migrate/messages.h"
#include "tools/migrate/page_batch.h"
#include "tools/migrate/page_runs.h"

namespace stopvisor::migrate {
namespace {

using Hash = SentPages::Hash;
using PageSpan = std::span<const std::byte, kPageBytes>;

constexpr size_t kPlaces = 2 * kBatchPages; // of the table of contents: half empty
constexpr uint16_t kNoPage = UINT16_MAX;

// Of memory that is being written to: each word is looked at once.
bool is_zeros(const std::byte* page) noexcept {
  constexpr size_t kWords = 8;
  for (size_t at = 0; at < kPageBytes; at += kWords * sizeof(uint64_t)) {
    std::array<uint64_t, kWords> words;
    std::memcpy(words.data(), page + at, sizeof words);
    uint64_t any = 0;
    for (const uint64_t word : words)
      any |= word;
    if (any != 0)
      return false;
  }
  return true;
}

// Which data page of the batch has a content: open addressing, by a hash that a guest cannot foresee.
class Contents {
public:
  Contents() noexcept { clear(); }
  void clear() noexcept { places_.fill(kNoPage); }
  // The place of the page with this content, or the free one where it belongs.
  template <typename IsSame>
  [[nodiscard]] uint16_t& find(const Hash& hash, const IsSame& is_same) noexcept {
    size_t at = hash.high % kPlaces;
    while (places_[at] != kNoPage && !is_same(places_[at]))
      at = (at + 1) % kPlaces;
    return places_[at];
  }

private:
  std::array<uint16_t, kPlaces> places_;
};

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const noexcept { ::ZSTD_freeCCtx(context); }
};

} // namespace

struct BatchWriter::Parts {
  Parts(SentPages* of_migration, int zstd_level, uint64_t taken)
      : sent(of_migration), level((taken & kFeatureZstd) != 0 ? zstd_level : 0), features(taken), own(0),
        data(kBatchBytes + kPageBytes), context(level != 0 ? ::ZSTD_createCCtx() : nullptr),
        compressed(level != 0 ? ::ZSTD_compressBound(kBatchBytes) : 0) {
    runs.reserve(kBatchRuns);
  }

  [[nodiscard]] bool knows(uint64_t feature) const noexcept { return (features & feature) != 0; }
  [[nodiscard]] PageSpan page(size_t number) const noexcept {
    return PageSpan(data.data() + number * kPageBytes, kPageBytes);
  }
  // Whether one more page can be taken in, whatever it holds.
  [[nodiscard]] bool full() const noexcept { return data_pages == kBatchPages || runs.size() == kBatchRuns; }

  void put(vmm::Gpa gpa, RunKind kind, uint16_t source = 0) {
    ++pages;
    if (!runs.empty()) {
      PageRun& last = runs.back();
      if (last.kind == kind && last.source == source && end_of(last) == gpa.value && last.pages < UINT32_MAX) {
        ++last.pages;
        return;
      }
    }
    runs.push_back({.gpa = gpa.value, .pages = 1, .kind = kind, .source = source});
  }
  void take_zeros(vmm::Gpa gpa, uint64_t number);
  void take_content(vmm::Gpa gpa, uint64_t number);
  [[nodiscard]] std::span<const std::byte> data_part(uint16_t& flags, std::string& fault);

  SentPages* sent;
  int level;
  uint64_t features;
  SentPages own;               // of no page: a secret for `contents` where there is no `sent`
  std::vector<std::byte> data; // one page more than can be full: the next one is copied there before it is known
  std::unique_ptr<ZSTD_CCtx, FreeContext> context;
  std::vector<std::byte> compressed;
  std::vector<PageRun> runs;
  std::array<Hash, kBatchPages> hashes{}; // of data pages
  Contents contents;
  size_t data_pages = 0;
  uint64_t pages = 0;
  std::vector<std::byte> head; // of the payload that was made last
  BatchFigures figures;
};

void BatchWriter::Parts::take_zeros(vmm::Gpa gpa, uint64_t number) {
  if (sent != nullptr && sent->unchanged(number, sent->hash_of_zeros())) {
    ++figures.unchanged;
    return;
  }
  ++figures.zeros;
  put(gpa, RunKind::kZeros);
}

// Of the page that was copied behind the last data page.
void BatchWriter::Parts::take_content(vmm::Gpa gpa, uint64_t number) {
  const PageSpan content = page(data_pages);
  const Hash hash = (sent != nullptr ? *sent : own).hash_of(content);
  if (sent != nullptr && sent->unchanged(number, hash)) {
    ++figures.unchanged;
    return;
  }
  if (knows(kFeatureCopies)) {
    uint16_t& place = contents.find(hash, [&](uint16_t other) {
      return hashes[other] == hash && std::memcmp(page(other).data(), content.data(), kPageBytes) == 0;
    });
    if (place != kNoPage) {
      ++figures.copies;
      put(gpa, RunKind::kCopies, place);
      return;
    }
    place = static_cast<uint16_t>(data_pages);
    hashes[data_pages] = hash;
  }
  ++figures.sent;
  ++data_pages;
  put(gpa, RunKind::kData);
}

std::span<const std::byte> BatchWriter::Parts::data_part(uint16_t& flags, std::string& fault) {
  const std::span<const std::byte> plain(data.data(), data_pages * kPageBytes);
  if (level == 0 || plain.empty())
    return plain;
  if (context == nullptr) {
    fault = "no memory";
    return {};
  }
  const size_t size =
      ::ZSTD_compressCCtx(context.get(), compressed.data(), compressed.size(), plain.data(), plain.size(), level);
  if (::ZSTD_isError(size) != 0) {
    fault = ::ZSTD_getErrorName(size);
    return {};
  }
  if (size >= plain.size())
    return plain;
  flags = kFlagZstd;
  return std::span<const std::byte>(compressed).first(size);
}

BatchWriter::BatchWriter(SentPages* sent, int level, uint64_t features)
    : parts_(std::make_unique<Parts>(sent, level, features)) {}
BatchWriter::~BatchWriter() = default;

bool BatchWriter::empty() const noexcept {
  return parts_->runs.empty();
}
const BatchFigures& BatchWriter::figures() const noexcept {
  return parts_->figures;
}

bool BatchWriter::add(vmm::Gpa gpa, uint64_t number, const std::byte* page) {
  Parts& parts = *parts_;
  if (parts.full())
    return false;
  ++parts.figures.looked_at;
  if (parts.knows(kFeatureZeroRuns) && is_zeros(page)) {
    parts.take_zeros(gpa, number);
    return true;
  }
  std::memcpy(parts.data.data() + parts.data_pages * kPageBytes, page, kPageBytes);
  parts.take_content(gpa, number);
  return true;
}

std::expected<BatchWriter::Payload, vmm::Error> BatchWriter::finish() {
  Parts& parts = *parts_;
  Payload payload{};
  if (parts.runs.empty())
    return payload;
  std::string fault;
  const std::span<const std::byte> data = parts.data_part(payload.flags, fault);
  if (!fault.empty())
    return std::unexpected(vmm::Error{"migrate", "compress pages", fault, vmm::Status::kFailed});
  const BatchHead head{.runs = static_cast<uint32_t>(parts.runs.size()),
                       .data_pages = static_cast<uint32_t>(parts.data_pages)};
  const auto runs = std::as_bytes(std::span(parts.runs));
  parts.head.resize(sizeof head + runs.size());
  std::memcpy(parts.head.data(), &head, sizeof head);
  std::ranges::copy(runs, parts.head.begin() + sizeof head);
  payload.parts = {parts.head, data};
  payload.pages = parts.pages;
  parts.figures.bytes += parts.head.size() + data.size();
  parts.runs.clear();
  parts.contents.clear();
  parts.data_pages = 0;
  parts.pages = 0;
  return payload;
}

} // namespace stopvisor::migrate
