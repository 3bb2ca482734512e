// SPDX-License-Identifier: Apache-2.0
#include "tools/snapshot/memory_file.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

namespace stopvisor::snapshot {
namespace {

// What one thread takes at a time: large writes, and still short enough for cancelling and progress.
constexpr uint64_t kBatchExtents = 8;

using Done = std::expected<void, vmm::Error>;
using Buffer = std::vector<std::byte>;

class MemoryFile {
public:
  MemoryFile(Publication& publication, MemorySource& source, const MemoryOptions& options, const Manifest& manifest,
             int file, uint64_t extents)
      : publication_(publication), source_(source), options_(options), manifest_(manifest), file_(file),
        name_(file_name_of(options.encoding)), extents_(extents) {}

  // CONTEXT: several threads, different batches.
  [[nodiscard]] Done write_batch(uint64_t batch) {
    Scratch scratch;
    const uint64_t first = batch * kBatchExtents;
    const uint64_t end = std::min<uint64_t>(first + kBatchExtents, extents_.size());
    scratch.buffer.resize(kExtentBytes);
    for (uint64_t number = first; number < end; ++number)
      if (Done written = write_extent(number, scratch); !written)
        return written;
    if (Done written = flush(scratch); !written)
      return written;
    if (options_.encoding == Encoding::kRaw)
      publication_.files().begin_writeback(file_, first * kExtentBytes, (end - first) * kExtentBytes);
    return {};
  }

  [[nodiscard]] std::vector<Extent> take_index() noexcept { return std::move(extents_); }
  [[nodiscard]] uint64_t file_end() const noexcept { return end_; }

private:
  // One thread's.
  struct Scratch {
    Buffer buffer;
    Buffer frames; // of the batch, until they are written together
    std::vector<Extent*> framed;
    // The pages that follow each other in memory and in the file, and are not written yet.
    ByteSpan run;
    uint64_t run_offset = 0;
  };

  [[nodiscard]] Done write_extent(uint64_t number, Scratch& scratch) {
    const auto extent = source_.extent(number, scratch.buffer);
    if (!extent)
      return std::unexpected(extent.error());
    Extent& entry = extents_[number];
    extent->own.for_runs([&](size_t first, size_t count) {
      for (size_t page = first; page < first + count; ++page)
        (is_zero_page(extent->bytes + page * kPageBytes) ? entry.zeros : entry.data).add(page);
      return true;
    });
    entry.data_pages = static_cast<uint32_t>(entry.data.count());
    if (options_.progress != nullptr)
      options_.progress->done_bytes.fetch_add(ram_of(source_.regions(), number).count() * kPageBytes,
                                              std::memory_order_relaxed); // also what turned out to be the parent's
    if (entry.data_pages == 0)
      return {};
    entry.xxh3 = xxh3_of_pages(extent->bytes, entry.data);
    if (options_.key != nullptr)
      entry.mac = options_.key->extent_mac(manifest_.id, number, entry, extent->bytes);
    return options_.encoding == Encoding::kRaw ? add_pages(number, *extent, entry, scratch)
                                               : add_frame(*extent, entry, scratch);
  }

  [[nodiscard]] Done add_pages(uint64_t number, const ExtentBytes& extent, Extent& entry, Scratch& scratch) {
    const uint64_t begin = number * kExtentBytes;
    entry.offset = begin;
    entry.stored_bytes = static_cast<uint32_t>(std::min(kExtentBytes, span_of(source_.regions()) - begin));
    Done done;
    entry.data.for_runs([&](size_t first, size_t count) {
      const ByteSpan pages(extent.bytes + first * kPageBytes, count * kPageBytes);
      const uint64_t offset = begin + first * kPageBytes;
      if (scratch.run.data() + scratch.run.size() == pages.data() &&
          scratch.run_offset + scratch.run.size() == offset) {
        scratch.run = ByteSpan(scratch.run.data(), scratch.run.size() + pages.size());
        return true;
      }
      done = flush(scratch);
      scratch.run = pages;
      scratch.run_offset = offset;
      return done.has_value();
    });
    if (done && extent.bytes == scratch.buffer.data()) // which the next extent is read into
      done = flush(scratch);
    return done;
  }

  [[nodiscard]] Done add_frame(const ExtentBytes& extent, Extent& entry, Scratch& scratch) {
    Buffer pages;
    pages.reserve(entry.data_pages * kPageBytes);
    entry.data.for_runs([&](size_t first, size_t count) {
      const std::byte* const from = extent.bytes + first * kPageBytes;
      pages.insert(pages.end(), from, from + count * kPageBytes);
      return true;
    });
    const size_t before = scratch.frames.size();
    scratch.frames.resize(before + ZSTD_compressBound(pages.size()));
    const size_t size = ZSTD_compress(scratch.frames.data() + before, scratch.frames.size() - before, pages.data(),
                                      pages.size(), options_.level);
    if (ZSTD_isError(size) != 0)
      return std::unexpected(vmm::Error{"compress", name_, ZSTD_getErrorName(size)});
    scratch.frames.resize(before + size);
    entry.frame_xxh3 = xxh3_of(ByteSpan(scratch.frames).subspan(before));
    entry.stored_bytes = static_cast<uint32_t>(size);
    scratch.framed.push_back(&entry);
    return {};
  }

  // Writes what waits.
  [[nodiscard]] Done flush(Scratch& scratch) {
    if (!scratch.frames.empty()) {
      scratch.run = scratch.frames;
      // Relaxed: a number that nobody else gets; the threads' end orders all else.
      scratch.run_offset = end_.fetch_add(scratch.frames.size(), std::memory_order_relaxed);
      uint64_t offset = scratch.run_offset;
      for (Extent* const entry : scratch.framed) {
        entry->offset = offset;
        offset += entry->stored_bytes;
      }
    }
    const ByteSpan run = std::exchange(scratch.run, {});
    if (run.empty())
      return {};
    if (const int error = publication_.files().write(file_, run, scratch.run_offset))
      return std::unexpected(publication_.failure(name_, error));
    return {};
  }

  Publication& publication_;
  MemorySource& source_;
  const MemoryOptions& options_;
  const Manifest& manifest_;
  int file_;
  std::string name_;
  std::vector<Extent> extents_;
  std::atomic<uint64_t> end_ = 0; // of the frames
};

} // namespace

bool is_zero_page(const std::byte* page) noexcept {
  // Most pages that are not zero tell it by their first bytes; the rest is a comparison with itself, shifted.
  uint64_t first = 0;
  std::memcpy(&first, page, sizeof(first));
  return first == 0 && std::memcmp(page, page + sizeof(first), kPageBytes - sizeof(first)) == 0;
}

std::expected<std::vector<Extent>, vmm::Error> write_memory(Publication& publication, MemorySource& source,
                                                            const Work& how, const MemoryOptions& options,
                                                            Manifest& manifest) {
  const uint64_t span = span_of(source.regions());
  const uint64_t extents = extents_of(span);
  const std::string name = file_name_of(options.encoding);
  if (options.progress != nullptr)
    options.progress->total_bytes.fetch_add(span, std::memory_order_relaxed);
  const auto file = publication.create(name);
  if (!file)
    return std::unexpected(file.error());
  if (options.encoding == Encoding::kRaw)
    if (const int error = publication.files().resize(file->get(), span))
      return std::unexpected(publication.failure(name, error));

  MemoryFile memory(publication, source, options, manifest, file->get(), extents);
  const uint64_t batches = (extents + kBatchExtents - 1) / kBatchExtents;
  if (auto done = in_parallel(how, batches, [&](uint64_t batch) { return memory.write_batch(batch); }); !done)
    return std::unexpected(std::move(done.error()));
  if (auto synced = publication.sync(file->get(), name); !synced)
    return std::unexpected(std::move(synced.error()));

  manifest.encoding = options.encoding;
  manifest.regions = source.regions();
  manifest.file_bytes = options.encoding == Encoding::kRaw ? span : memory.file_end();
  auto index = memory.take_index();
  for (uint64_t number = 0; number < index.size(); ++number) {
    manifest.data_pages += index[number].data_pages;
    manifest.zero_pages += index[number].zeros.count();
    manifest.parent_pages +=
        ram_of(manifest.regions, number).count() - (index[number].data | index[number].zeros).count();
  }
  return index;
}

} // namespace stopvisor::snapshot
