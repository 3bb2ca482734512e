// SPDX-License-Identifier: Apache-2.0
// A batch of pages, from whoever called: nothing but guest memory is written, and nothing at all by a refused one.
#include <algorithm>
#include <cstring>

#include "tests/fuzz/fuzzer.h"
#include "tools/migrate/frame.h"
#include "tools/migrate/page_batch.h"

namespace stopvisor::fuzz {
namespace {

using namespace migrate;

constexpr uint64_t kLow = 0x4000; // two regions of guest memory, with what is not between them and around
constexpr uint64_t kHigh = 0x2'0000;
constexpr size_t kRegionPages = 8;
constexpr size_t kRegionBytes = kRegionPages * kPageBytes;
constexpr auto kUntouched = std::byte(0xa5);

class Memory : public PageTarget {
public:
  std::span<std::byte> pages(vmm::Gpa gpa, uint64_t pages) noexcept override {
    for (const auto& [base, at] : {std::pair(kLow, kRegionBytes), std::pair(kHigh, 3 * kRegionBytes)})
      if (gpa.value >= base && pages <= kRegionPages && gpa.value - base <= kRegionBytes - pages * kPageBytes)
        return std::span(bytes_).subspan(at + (gpa.value - base), pages * kPageBytes);
    return {};
  }
  bool zero(vmm::Gpa gpa, uint64_t count) noexcept override {
    const auto range = pages(gpa, count);
    must(!range.empty(), "zeros outside of guest memory");
    std::ranges::fill(range, std::byte(0));
    return true;
  }
  [[nodiscard]] bool untouched(size_t region) const {
    static const Bytes untouched(kRegionBytes, kUntouched);
    return std::memcmp(bytes_.data() + region * kRegionBytes, untouched.data(), kRegionBytes) == 0;
  }

private:
  Bytes bytes_ = Bytes(5 * kRegionBytes, kUntouched); // what is not guest memory, a region, and so on
};

Bytes batch(int level) {
  const Bytes data(kPageBytes, std::byte(1));
  const Bytes other(kPageBytes, std::byte(2));
  const Bytes zeros(kPageBytes);
  BatchWriter writer(nullptr, level);
  uint64_t gpa = kLow;
  for (const Bytes* const page : {&data, &other, &data, &data, &zeros, &zeros}) {
    must(writer.add(vmm::Gpa{gpa}, 0, page->data()), "room in a batch");
    gpa += kPageBytes;
  }
  must(writer.add(vmm::Gpa{kHigh}, 0, other.data()), "room in a batch");
  const auto payload = writer.finish();
  must(payload.has_value(), "a batch");
  Bytes whole = chosen(payload->flags, {});
  for (const auto part : payload->parts)
    whole.insert(whole.end(), part.begin(), part.end());
  return whole;
}

} // namespace

std::vector<Bytes> seeds() {
  return {batch(0), batch(1), batch(9)};
}

void try_one(ByteSpan input) {
  const Choice choice = choice_of(input);
  Memory memory;
  BatchReader reader;
  const auto applied = reader.apply("fuzz", static_cast<uint16_t>(choice.first & kFlagZstd), choice.rest, memory);
  for (const size_t around : {0, 2, 4})
    must(memory.untouched(around), "what is not guest memory");
  if (applied)
    must(*applied > 0 && *applied <= 2 * kRegionPages, "more pages than there are");
  else
    must(memory.untouched(1) && memory.untouched(3), "a batch that was refused");
}

} // namespace stopvisor::fuzz
