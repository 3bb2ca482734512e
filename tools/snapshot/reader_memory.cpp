// SPDX-License-Identifier: Apache-2.0
// Reads and checks the memory of one snapshot, extent by extent.
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "tools/snapshot/memory_file.h"
#include "tools/snapshot/reader.h"

namespace stopvisor::snapshot {
namespace {

std::string name_of(uint64_t number) {
  return "extent " + std::to_string(number);
}

} // namespace

std::expected<void, vmm::Error> Snapshot::read_at(std::span<std::byte> to, uint64_t offset) const {
  while (!to.empty()) {
    const ssize_t got = ::pread(memory_.get(), to.data(), to.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0)
      return std::unexpected(
          vmm::system_error(options_.operation, directory_ + "/" + file_name_of(manifest_.encoding), errno));
    if (got == 0)
      return std::unexpected(error(file_name_of(manifest_.encoding), "shrank while it was read"));
    to = to.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  return {};
}

std::expected<void, vmm::Error> Snapshot::read_frame(uint64_t number, std::span<std::byte> extent) const {
  const Extent& entry = index_[number];
  std::vector<std::byte> frame(entry.stored_bytes);
  if (auto read = read_at(frame, entry.offset); !read)
    return read;
  if (xxh3_of(frame) != entry.frame_xxh3)
    return std::unexpected(error(kZstdName, name_of(number) + " is not what its checksum says"));
  // The room is what the index says, so that a frame that would be larger is an error and takes nothing.
  std::vector<std::byte> pages(entry.data_pages * kPageBytes);
  const size_t size = ZSTD_findFrameCompressedSize(frame.data(), frame.size()) == frame.size()
                          ? ZSTD_decompress(pages.data(), pages.size(), frame.data(), frame.size())
                          : 0;
  if (ZSTD_isError(size) != 0 || size != pages.size())
    return std::unexpected(
        error(kZstdName, name_of(number) + " cannot be decompressed to the length it should have"));
  const std::byte* from = pages.data();
  entry.data.for_runs([&](size_t first, size_t count) {
    std::memcpy(extent.data() + first * kPageBytes, from, count * kPageBytes);
    from += count * kPageBytes;
    return true;
  });
  return {};
}

std::expected<void, vmm::Error> Snapshot::read_extent(uint64_t number, std::span<std::byte> extent,
                                                      const PageSet& stale) const {
  const Extent& entry = index_[number];
  (entry.zeros & stale).for_runs([&](size_t first, size_t count) {
    std::memset(extent.data() + first * kPageBytes, 0, count * kPageBytes);
    return true;
  });
  if (entry.data_pages == 0)
    return {};
  std::expected<void, vmm::Error> read;
  if (manifest_.encoding == Encoding::kZstd)
    read = read_frame(number, extent);
  else
    entry.data.for_runs([&](size_t first, size_t count) {
      read = read_at(extent.subspan(first * kPageBytes, count * kPageBytes), entry.offset + first * kPageBytes);
      return read.has_value();
    });
  if (!read)
    return read;
  const char* const name = file_name_of(manifest_.encoding);
  if (xxh3_of_pages(extent.data(), entry.data) != entry.xxh3)
    return std::unexpected(error(name, name_of(number) + " is not what its checksum says"));
  if (options_.key != nullptr &&
      !same_hash(options_.key->extent_mac(manifest_.id, number, entry, extent.data()), entry.mac))
    return std::unexpected(error(name, name_of(number) + " was changed by somebody without the key"));
  return {};
}

// Pages of memory.raw that are not this snapshot's data must read as zeros: whoever maps the file would see them.
std::expected<void, vmm::Error> Snapshot::check_holes(uint64_t number) const {
  const uint64_t begin = number * kExtentBytes;
  const uint64_t end = std::min(begin + kExtentBytes, manifest_.file_bytes);
  const PageSet holes = ~index_[number].data;
  std::vector<std::byte> page(kPageBytes);
  std::expected<void, vmm::Error> read;
  for (uint64_t at = begin; at < end && read; at += kPageBytes) {
    const off_t data = ::lseek(memory_.get(), static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO)
      break; // nothing but a hole is left
    at = std::max(at, data < 0 ? at : static_cast<uint64_t>(data) / kPageBytes * kPageBytes);
    if (at >= end || !holes.has((at - begin) / kPageBytes))
      continue;
    read = read_at(page, at);
    if (read && !is_zero_page(page.data()))
      read = std::unexpected(error(kRawName, name_of(number) + " has bytes where it should have none"));
  }
  return read;
}

std::expected<void, vmm::Error> Snapshot::verify_memory(const Work& how, Progress* progress) const {
  return in_parallel(how, index_.size(), [&](uint64_t number) {
    std::vector<std::byte> extent(kExtentBytes);
    auto checked = read_extent(number, extent, {}); // all of it is zeros
    if (checked && manifest_.encoding == Encoding::kRaw)
      checked = check_holes(number);
    if (progress != nullptr)
      progress->done_bytes.fetch_add(index_[number].data_pages * kPageBytes, std::memory_order_relaxed);
    return checked;
  });
}

} // namespace stopvisor::snapshot
