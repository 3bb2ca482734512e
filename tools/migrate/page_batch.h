// SPDX-License-Identifier: Apache-2.0
// Pages of guest memory as one message: zeros are named, pages alike are sent once, the rest follows in order.
//
// The guest writes to its memory while it is read. So each page is copied once, and everything (whether it is
// zeros, its checksum, what is sent) is of the copy; a page that was torn by a write is sent again, as the dirty
// log has it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "vmm/address.h"
#include "vmm/error.h"

namespace stopvisor::migrate {

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kBatchPages = 256; // whole ones in a batch, at most
inline constexpr size_t kBatchRuns = 1024; // at most

// What was sent of each page last, as a keyed 128-bit hash (XXH3 with a secret of this migration, which a guest
// cannot know): a page that was written with what was there is not sent again. CONTEXT: different pages from
// several threads at once; the same page from one.
class SentPages {
public:
  explicit SentPages(uint64_t pages); // of all memory; nothing was sent
  ~SentPages();
  // Whether `content` is what was sent of page `number` last; notes it otherwise. A number that there is not is
  // never unchanged.
  [[nodiscard]] bool unchanged(uint64_t number, std::span<const std::byte, kPageBytes> content) noexcept;
  // The same, of what was computed already: the hash of a content, that of a page of zeros.
  struct Hash {
    uint64_t low = 0; // odd: so it is never the hash of nothing, which is 0
    uint64_t high = 0;
    friend bool operator==(const Hash&, const Hash&) = default;
  };
  [[nodiscard]] Hash hash_of(std::span<const std::byte, kPageBytes> content) const noexcept;
  [[nodiscard]] const Hash& hash_of_zeros() const noexcept;
  [[nodiscard]] bool unchanged(uint64_t number, const Hash& hash) noexcept;

private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

struct BatchFigures {
  uint64_t looked_at = 0; // pages
  uint64_t zeros = 0;
  uint64_t copies = 0;    // alike one in the same batch
  uint64_t unchanged = 0; // as they were sent before
  uint64_t sent = 0;      // whole
  uint64_t bytes = 0;     // of payloads, compressed where they are
};

// Fills a batch and makes its payload. One for each thread that sends.
class BatchWriter {
public:
  // `level`: of zstd, 1 to 19, 0: not compressed. `sent` may be null, and outlives the writer. `features`: what
  // both sides know (messages.h): pages of zeros, and copies, are whole pages where the other does not.
  BatchWriter(SentPages* sent, int level, uint64_t features = ~uint64_t{0});
  ~BatchWriter();

  // Takes one page in, which the guest may write to meanwhile; a page is not taken in twice. `number` is its number
  // in `sent`. RETURNS: false where the batch is full, and nothing was noted: finish() it first.
  [[nodiscard]] bool add(vmm::Gpa gpa, uint64_t number, const std::byte* page);
  [[nodiscard]] bool empty() const noexcept;

  struct Payload {
    std::array<std::span<const std::byte>, 2> parts; // runs, data: of the writer, until the next call
    uint16_t flags = 0;                              // for the frame
    uint64_t pages = 0;                              // that the receiver will put in place
  };
  // What to send; the batch is empty after it, and so is the payload of an empty one. RETURNS: kFailed where zstd
  // fails.
  [[nodiscard]] std::expected<Payload, vmm::Error> finish();
  [[nodiscard]] const BatchFigures& figures() const noexcept;

private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// Where a batch's pages go. CONTEXT: the thread that applies.
class PageTarget {
public:
  virtual ~PageTarget() = default;
  // Whether [gpa, gpa + pages * 4096) is guest memory, all of it of one region. Asked of each run before anything
  // is put in place: so whoever keeps a record of what is written overrides it.
  [[nodiscard]] virtual bool has(vmm::Gpa gpa, uint64_t pages) noexcept { return !this->pages(gpa, pages).empty(); }
  // Host memory of it, to be written now; empty where it is not.
  [[nodiscard]] virtual std::span<std::byte> pages(vmm::Gpa gpa, uint64_t pages) noexcept = 0;
  // These pages are zeros; false where they are not all guest memory.
  [[nodiscard]] virtual bool zero(vmm::Gpa gpa, uint64_t pages) noexcept = 0;
};

// Takes batches apart. One for each thread that receives.
class BatchReader {
public:
  // `features`: what both sides know; a batch with anything else is refused.
  explicit BatchReader(uint64_t features = ~uint64_t{0});
  ~BatchReader();
  // Checks all of a payload that may be anything, then puts its pages in place. CONTEXT: nobody else writes to
  // these pages. RETURNS: how many; kRefused for the first thing that is wrong, naming it (nothing of this batch
  // was put in place then).
  [[nodiscard]] std::expected<uint64_t, vmm::Error> apply(std::string_view operation, uint16_t flags,
                                                          std::span<const std::byte> payload, PageTarget& target);

private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

} // namespace stopvisor::migrate
