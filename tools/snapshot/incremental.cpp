// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/incremental.h"

#include <cstring>
#include <utility>

#include "vmm/units.h"

namespace stopvisor::snapshot {
namespace {

class Difference final : public MemorySource {
public:
  Difference(const Chain& parent, MemorySource& memory) : parent_(parent), memory_(memory) {}

  [[nodiscard]] const std::vector<Region>& regions() const override { return memory_.regions(); }

  [[nodiscard]] std::expected<ExtentBytes, vmm::Error> extent(uint64_t number,
                                                              std::span<std::byte> buffer) override {
    auto extent = memory_.extent(number, buffer);
    if (!extent || extent->own.empty())
      return extent;
    // What is not read into is of no region, and is not compared: nothing is gained by zeros there.
    const auto old = std::make_unique_for_overwrite<std::byte[]>(kExtentBytes);
    if (auto read = parent_.read_extent(number, {old.get(), kExtentBytes}); !read)
      return std::unexpected(std::move(read.error()));
    PageSet differing;
    extent->own.for_runs([&](size_t first, size_t count) {
      for (size_t page = first; page < first + count; ++page)
        if (std::memcmp(extent->bytes + page * kPageBytes, old.get() + page * kPageBytes, kPageBytes) != 0)
          differing.add(page);
      return true;
    });
    extent->own = differing;
    return extent;
  }

private:
  const Chain& parent_;
  MemorySource& memory_;
};

std::string layout_of(const std::vector<Region>& regions) {
  std::string text;
  for (const Region& region : regions)
    text += (text.empty() ? "" : ", ") + std::to_string(region.bytes) + " bytes at " + vmm::to_hex(region.gpa);
  return text;
}

} // namespace

std::unique_ptr<MemorySource> difference(const Chain& parent, MemorySource& memory) {
  return std::make_unique<Difference>(parent, memory);
}

std::expected<Base, vmm::Error> Base::open(std::string_view operation, const std::string& directory, const Key* key,
                                           std::string_view of, const std::vector<Region>& regions) {
  const OpenOptions options{.operation = operation, .key = key};
  auto chain = Chain::open(directory, options);
  if (!chain)
    return std::unexpected(std::move(chain.error()));
  const Snapshot& newest = chain->newest();
  if (chain->regions() != regions)
    return std::unexpected(newest.error("", "has other memory (" + layout_of(chain->regions()) + ") than " +
                                                std::string(of) + " (" + layout_of(regions) + ")"));
  if (chain->members().size() == kMaxChain)
    return std::unexpected(newest.error("", "has the longest chain there can be; 'snapshot chain merge' makes it a "
                                            "short one"));
  return Base(*std::move(chain), options, directory);
}

Parent Base::link() const {
  return {directory_, chain_.newest().manifest().id, chain_.newest().digest()};
}

std::expected<void, vmm::Error> Base::confirm() const {
  const auto again = Chain::open(directory_, options_);
  if (!again)
    return std::unexpected(again.error());
  if (!same_hash(again->newest().digest(), chain_.newest().digest()))
    return std::unexpected(again->newest().error("", "was replaced meanwhile, and would be a parent no more"));
  return {};
}

} // namespace stopvisor::snapshot
