// SPDX-License-Identifier: Apache-2.0
// Memory whose content comes as it is needed: whoever touches a block that is not there waits until it is.
//
// A guest that goes on from a snapshot needs a few pages at once and most of them much later or never. So it starts
// with nothing, and each block is read, checked and put in place on its first touch, by the kernel's userfaultfd: a
// page is there only when all of its block was found good. docs/adr/0021-restore-on-demand.md says why so.
//
//   begin(): kWatching ── everything is there ──▶ kOver
//            kWatching ── forget() ─────────────▶ kOver
//   a block: kAbsent ──▶ kBusy ──▶ kPresent, or kBad; or kAbsent again, where bring() has put some pages of it
//   there
//
// The serving thread takes no part in stops, waits for none and touches none of the memory: whoever takes part in
// one and waits for a block, comes on. It ends, and the kernel watches nothing any more, when everything is there.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/progress.h"
#include "vmm/unique_fd.h"
#include "vmm/userfault.h"

namespace stopvisor::vmm {

// Where the content comes from.
class MemoryOrigin {
public:
  virtual ~MemoryOrigin() = default;
  // Whether [offset, offset + bytes) is nothing but zeros, as far as that is known without reading it.
  [[nodiscard]] virtual bool is_zero(uint64_t offset, uint64_t bytes) const = 0;
  // What belongs at `offset`, all of `to`: checked there, so that what is used is what was checked. Where `to` is
  // all `zeros` already, pages of zeros need not be touched.
  // CONTEXT: several threads at once; waits for no stop and touches none of the memory.
  [[nodiscard]] virtual std::expected<void, Error> read(uint64_t offset, std::span<std::byte> to,
                                                        bool zeros) const = 0;
};

struct AbsentOptions {
  std::string operation = "restore"; // of errors
  uint64_t block_bytes = 1 << 20;    // a multiple of the memory's pages: 2 MiB at least for huge ones
  // The memory is a file's, in which the kernel may make 2 MiB at once for a touch of a page that it does not watch
  // (shmem_enabled), whether it watches the others or not: Linux 6.1, mm/shmem.c, shmem_get_folio_gfp().
  bool is_file = false;
  // A block could not be read, or is not good. Its pages never come: who waits for them inside KVM_RUN cannot be
  // had out of there on every kernel, so this must end the process. CONTEXT: the serving thread.
  std::function<void(const Error&)> failed;
};

class AbsentMemory {
public:
  // Starts to watch `memory`: whole pages, none of which is there yet, and which outlive the object.
  // CONTEXT: before anybody touches them. RETURNS: Userfault's errors, kFailed where the host refuses.
  [[nodiscard]] static std::expected<std::unique_ptr<AbsentMemory>, Error>
  begin(std::span<std::byte> memory, std::unique_ptr<MemoryOrigin> origin, AbsentOptions options);
  // CONTEXT: nobody touches the memory any more, nor is in another function.
  ~AbsentMemory();
  AbsentMemory(const AbsentMemory&) = delete;
  AbsentMemory& operator=(const AbsentMemory&) = delete;

  // CONTEXT, these two: any thread; blocks while content is read. RETURNS: the origin's errors, "was cancelled".
  // Brings in the pages at `offsets`, their blocks checked, for who would rather have an error than wait for ever.
  // The rest of a block comes with a touch of it, or at once where that costs no more (zeros, huge pages).
  [[nodiscard]] std::expected<void, Error> bring(std::vector<uint64_t> offsets);
  // Brings in all that is not there yet, by address. Nobody needs to wait for anything after it, and others may
  // watch the memory. One that was cancelled may be called again.
  [[nodiscard]] std::expected<void, Error> bring_all(std::stop_token stop, Progress* progress = nullptr);
  // The content is about to go: what is not there yet is zeros from now on. CONTEXT: any thread, under a stop or
  // not.
  void forget() noexcept;

  // CONTEXT: any thread.
  [[nodiscard]] bool over() const; // everything is there, or was forgotten
  [[nodiscard]] uint64_t absent_bytes() const;
  [[nodiscard]] uint64_t touched_blocks() const; // that somebody waited for

private:
  enum class State : uint8_t { kAbsent, kBusy, kPresent, kBad };
  // Room for a block, all of it touched: the kernel copies from pages that are not there much slower.
  struct Buffer {
    explicit Buffer(uint64_t size) : bytes(size) {}
    std::vector<std::byte> bytes;
    bool zeros = true; // nothing was read into it yet
  };

  AbsentMemory(std::span<std::byte> memory, std::unique_ptr<MemoryOrigin> origin, AbsentOptions options,
               Userfault userfault, UniqueFd wake);
  enum class For { kToucher, kAsker }; // the first by the serving thread alone
  // A block that is the caller's alone: from begin(), which says whether anything is to be done, to the object's
  // end.
  class Turn;
  // Where `first` is given somebody waits for its page, which comes before all others.
  [[nodiscard]] std::expected<void, Error> bring_block(size_t number, Buffer& buffer, const std::byte* first);
  [[nodiscard]] std::expected<void, Error> bring_pages(size_t number, std::span<const uint64_t> offsets);
  [[nodiscard]] std::expected<void, Error> fetch(Turn& turn, Buffer& buffer, const std::byte* first);
  [[nodiscard]] std::expected<void, Error> fetch_pages(Turn& turn, std::span<const uint64_t> offsets);
  [[nodiscard]] bool put_zeros(size_t number);
  [[nodiscard]] bool has_small_pages() const noexcept { return options_.block_bytes < kHugePageBytes; }
  [[nodiscard]] bool may_release(size_t number) const;
  [[nodiscard]] bool claim_release(size_t number); // under lock_
  // These: `content` is the block's. RETURNS: 0 or an errno value.
  [[nodiscard]] int place_in_pieces(Turn& turn, const std::byte* content, const std::byte* first);
  [[nodiscard]] int place_touched(Turn& turn, const std::byte* content);
  [[nodiscard]] int hear_touches(); // into touches_; RETURNS: 0 or an errno value
  void end_watch() noexcept;        // under lock_, nothing busy
  void serve() noexcept;
  void fail(const Error& error) const;
  [[nodiscard]] std::span<std::byte> block(size_t number) const noexcept;
  [[nodiscard]] Error cannot_place(int refused) const;
  [[nodiscard]] Error error(std::string reason) const {
    return {options_.operation, "guest memory", std::move(reason)};
  }

  const std::span<std::byte> memory_;
  const std::unique_ptr<MemoryOrigin> origin_;
  const AbsentOptions options_;
  const Userfault userfault_;
  const UniqueFd wake_; // raised to make the serving thread look whether it is over

  mutable std::mutex lock_; // a leaf, but for system calls that wait for nobody
  std::condition_variable changed_;
  std::vector<State> states_;                 // this and the following under lock_
  std::vector<bool> released_;                // blocks of zeros that the kernel does not watch any more
  size_t islands_ = 0;                        // of them, that lie together
  std::map<size_t, std::vector<bool>> early_; // of blocks that are not there wholly: which pages are
  size_t absent_;                             // kAbsent, kBusy and kBad
  size_t busy_ = 0;
  uint64_t touched_ = 0;
  bool over_ = false;
  bool forgotten_ = false;

  std::deque<const std::byte*> touches_; // of which the serving thread was told; its own
  std::thread server_;
};

} // namespace stopvisor::vmm
