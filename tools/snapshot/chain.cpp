// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/chain.h"

#include <algorithm>
#include <filesystem>
#include <utility>

namespace stopvisor::snapshot {
namespace {

// The memory of a chain, for a new snapshot.
class ChainSource : public MemorySource {
public:
  explicit ChainSource(const Chain& chain) : chain_(chain) {}

  [[nodiscard]] const std::vector<Region>& regions() const override { return chain_.regions(); }

  [[nodiscard]] std::expected<ExtentBytes, vmm::Error> extent(uint64_t number,
                                                              std::span<std::byte> buffer) override {
    if (auto read = chain_.read_extent(number, buffer); !read)
      return std::unexpected(std::move(read.error()));
    return ExtentBytes{.bytes = buffer.data(), .own = ram_of(regions(), number)};
  }

private:
  const Chain& chain_;
};

// RETURNS: what speaks against `parent` being that of `child`, or an empty string.
std::string mismatch(const Snapshot& child, const Snapshot& parent) {
  const auto& wanted = child.manifest().parent;
  if (!wanted)
    return "is below a full snapshot, which has no parent";
  const ParentLink& link = *wanted;
  if (link.id != parent.manifest().id)
    return "is snapshot " + hex_text(parent.manifest().id) + ", and " + child.directory() + " wants its parent " +
           hex_text(link.id);
  if (!same_hash(link.digest, parent.digest()))
    return "is not as it was when " + child.directory() + " was made: its digest is another one";
  if (child.manifest().regions != parent.manifest().regions)
    return "has other memory than " + child.directory();
  return {};
}

} // namespace

std::expected<void, vmm::Error> Chain::add(const std::string& directory, const OpenOptions& options) {
  OpenOptions own = options;
  if (!members_.empty())
    own.expected.reset(); // mismatch() knows which parent
  auto snapshot = Snapshot::open(directory, own);
  if (!snapshot)
    return std::unexpected(std::move(snapshot.error()));
  if (!members_.empty())
    if (std::string reason = mismatch(members_.back(), *snapshot); !reason.empty())
      return std::unexpected(snapshot->error("", std::move(reason)));
  if (members_.size() == kMaxChain)
    return std::unexpected(snapshot->error("", "is member " + std::to_string(kMaxChain + 1) +
                                                   " of its chain; at most " + std::to_string(kMaxChain) +
                                                   " are taken"));
  members_.push_back(*std::move(snapshot));
  return {};
}

std::expected<void, vmm::Error> Chain::add_parents(const OpenOptions& options) {
  while (const auto& parent = members_.back().manifest().parent) {
    const std::string child = members_.back().directory();
    const auto place = (std::filesystem::path(child) / parent->place).lexically_normal();
    if (auto added = add(place.string(), options); !added) {
      if (added.error().status == vmm::Status::kFailed)
        added.error().reason += ", of the parent of " + child;
      return added;
    }
  }
  return {};
}

std::expected<Chain, vmm::Error> Chain::open(const std::string& directory, const OpenOptions& options) {
  auto newest = Snapshot::describe(directory, options);
  if (!newest)
    return std::unexpected(std::move(newest.error()));
  return open(*std::move(newest), options);
}

std::expected<Chain, vmm::Error> Chain::open(Snapshot newest, const OpenOptions& options) {
  if (auto opened = newest.open_contents(); !opened)
    return std::unexpected(std::move(opened.error()));
  Chain chain;
  chain.members_.push_back(std::move(newest));
  if (auto whole = chain.add_parents(options); !whole)
    return std::unexpected(std::move(whole.error()));
  return chain;
}

std::expected<Chain, vmm::Error> Chain::open(const std::vector<std::string>& directories,
                                             const OpenOptions& options) {
  Chain chain;
  for (const std::string& directory : directories)
    if (auto added = chain.add(directory, options); !added)
      return std::unexpected(std::move(added.error()));
  if (chain.members_.empty() || chain.members_.back().manifest().parent)
    return std::unexpected(vmm::Error{std::string(options.operation), directories.empty() ? "" : directories.back(),
                                      "is the last of the chain, and has a parent that is missing",
                                      vmm::Status::kRefused});
  return chain;
}

std::expected<void, vmm::Error> Chain::read_extent(uint64_t number, std::span<std::byte> extent,
                                                   PageSet stale) const {
  // Members below one that has every page have nothing to say.
  const PageSet ram = ram_of(regions(), number);
  PageSet found;
  size_t needed = 0;
  while (needed < members_.size() && !(found == ram)) {
    const Extent& entry = members_[needed++].index()[number];
    found = found | entry.data | entry.zeros;
  }
  for (size_t i = needed; i-- > 0;) {
    if (auto read = members_[i].read_extent(number, extent, stale); !read)
      return read;
    stale = stale | members_[i].index()[number].data;
  }
  return {};
}

std::expected<void, vmm::Error> Chain::read_memory(std::span<const std::span<std::byte>> to, const Work& how,
                                                   Progress* progress) const {
  if (progress != nullptr)
    progress->total_bytes.store(span_of(regions()), std::memory_order_relaxed);
  return in_parallel(how, newest().index().size(), [&](uint64_t number) -> std::expected<void, vmm::Error> {
    const uint64_t begin = number * kExtentBytes;
    for (size_t i = 0; i < regions().size(); ++i) {
      const Region& region = regions()[i];
      if (begin < region.offset || begin >= region.offset + region.bytes)
        continue;
      const size_t size = std::min(kExtentBytes, region.offset + region.bytes - begin);
      const std::span<std::byte> place = to[i].subspan(begin - region.offset, size);
      auto read = read_extent(number, place, {}); // pages beyond the region are nobody's, and are not touched
      if (!read)
        return read;
      if (progress != nullptr)
        progress->done_bytes.fetch_add(size, std::memory_order_relaxed);
    }
    return {};
  });
}

std::expected<void, vmm::Error> Chain::verify(const Work& how, Progress* progress) const {
  uint64_t total = 0;
  for (const Snapshot& member : members_)
    total += member.manifest().data_pages * kPageBytes + member.disk_bytes();
  if (progress != nullptr)
    progress->total_bytes.store(total, std::memory_order_relaxed);
  for (const Snapshot& member : members_)
    for (const auto check : {&Snapshot::verify_memory, &Snapshot::verify_disks})
      if (auto verified = (member.*check)(how, progress); !verified)
        return verified;
  return {};
}

std::unique_ptr<MemorySource> Chain::source() const {
  return std::make_unique<ChainSource>(*this);
}

} // namespace stopvisor::snapshot
