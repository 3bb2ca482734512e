// SPDX-License-Identifier: Apache-2.0
// Memory as of an instant, read while others go on writing to it: docs/adr/0020-live-snapshots.md says why so.
//
// Every page is protected against writes (userfaultfd). Who writes to one waits until its content has been put
// aside, by a thread that does nothing else, and then writes. Protecting takes long, so it is done before the
// instant, piece by piece, while everybody writes: pages that are written meanwhile are let go and noted, and
// protected once more, until hardly any are left for the instant itself.
//
//   arm(): kArming ── freeze(), under a stop ──▶ kFrozen ── fail(), or the object's end ──▶ kOver
//   a write meets a protected page, and
//   kArming   its cluster is noted and let go
//   kFrozen   its cluster is put aside, unless it has been copied already, and let go; where there is no room to
//   put
//             it, the writer waits for copy() to make some
//   kOver     it is let go
//
// The thread that serves them takes no part in stops, waits for none, and never writes to the memory: whoever takes
// part in one and has to write, comes on. It lives until no page is protected any more.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "vmm/error.h"
#include "vmm/side_buffer.h"
#include "vmm/unique_fd.h"
#include "vmm/userfault.h"

namespace stopvisor::vmm {

// Where a test can step in. CONTEXT of a call: the thread that does it, without a lock; with an offset in the
// memory.
enum class FreezePoint {
  kArmed,     // arm() has protected a piece
  kFault,     // the serving thread knows of a writer who waits, and has not looked at what is to be done
  kServed,    // it has dealt with it
  kThrottled, // it found no room; the writer goes on waiting
  kCopied,    // copy() has copied what is in memory, and not looked at what was put aside
  kFinished,  // copy() has everything
};

struct FreezeOptions {
  std::string operation = "freeze memory"; // of errors
  uint64_t cluster_bytes = 64 << 10;       // what is put aside at once; of huge pages at least one
  uint64_t side_limit_bytes = 0;           // to put aside at once; 0: a quarter of the memory, at least 64 MiB
  bool populate = false;                   // all pages before they are protected, as Linux before 6.4 needs
  std::stop_token stop;                    // of arm()
  std::function<void(FreezePoint, uint64_t)> at;
};

struct FreezeFigures {
  uint64_t early_writes = 0;                 // before the instant
  uint64_t late_runs = 0;                    // of clusters that freeze() itself had to protect again
  uint64_t preserved_bytes = 0;              // put aside, all in all
  uint64_t side_peak_bytes = 0;              // at once
  uint64_t throttled = 0;                    // writes that had to wait for room
  std::chrono::nanoseconds throttled_for{0}; // for how long at least one did
};

class FrozenMemory {
public:
  static constexpr uint64_t kExtentBytes = 1 << 20;

  // Of `memory`: whole pages that outlive the object. Nothing is protected yet. CONTEXT: any thread. RETURNS:
  // Userfault's errors, kFailed where the host refuses.
  [[nodiscard]] static std::expected<std::unique_ptr<FrozenMemory>, Error> create(std::span<std::byte> memory,
                                                                                  FreezeOptions options);
  // Nothing is protected any more, and nobody waits. CONTEXT: not under a stop. Nobody is in another function.
  ~FrozenMemory();
  FrozenMemory(const FrozenMemory&) = delete;
  FrozenMemory& operator=(const FrozenMemory&) = delete;

  // Protects all of it, while it is written. CONTEXT: once, any thread but one that a stop waits for; takes long.
  // RETURNS: "was cancelled", fail()'s reason, kFailed where the host refuses.
  [[nodiscard]] std::expected<void, Error> arm();
  // This is the instant. CONTEXT: once, while nobody writes (under a stop). RETURNS: why there is none: fail()ed
  // before, or kFailed where the host refuses.
  [[nodiscard]] std::expected<void, Error> freeze();
  // What was at `offset` in the instant. Everybody may write there from then on. Each extent once: `offset` is a
  // multiple of kExtentBytes, and `to` as long, or up to the memory's end.
  // CONTEXT: after freeze(); several threads. RETURNS: why it cannot be told any more.
  [[nodiscard]] std::expected<void, Error> copy(uint64_t offset, std::span<std::byte> to);
  // The memory's content is about to go: whatever has not been copied never will be. Lets everybody write.
  // CONTEXT: any thread, under a stop or not; the memory changes after it returns.
  void fail(const std::string& reason) noexcept;

  [[nodiscard]] FreezeFigures figures() const;

private:
  enum class Mode { kArming, kFrozen, kOver };
  using Clock = std::chrono::steady_clock;
  using Clusters = std::vector<uint32_t>; // their numbers

  FrozenMemory(std::span<std::byte> memory, FreezeOptions options, Userfault userfault, SideBuffer side,
               UniqueFd wake);
  [[nodiscard]] std::expected<void, Error> arm_piece(std::span<std::byte> piece);
  [[nodiscard]] std::expected<void, Error> arm_again();
  [[nodiscard]] int protect_runs(Clusters clusters, uint64_t& runs);
  [[nodiscard]] std::expected<void, Error> check() const; // under lock_
  [[nodiscard]] Error error(std::string reason) const;
  [[nodiscard]] Error cannot_protect(int refused) const; // CONTEXT: without the lock
  void at(FreezePoint point, uint64_t offset) const {
    if (options_.at)
      options_.at(point, offset);
  }

  // frozen_faults.cpp, the serving thread's.
  void serve() noexcept;
  void serve_writer(uint64_t offset);
  [[nodiscard]] bool let_go(uint32_t cluster);                // under lock_; false: it has to wait
  [[nodiscard]] bool wanted(uint32_t cluster) const noexcept; // under lock_
  void retry_throttled();
  void fail_locked(std::string reason) noexcept;

  // For memory that others may write meanwhile, when what is read is not used.
  static void copy_words(std::byte* to, const std::byte* from, size_t bytes) noexcept;
  [[nodiscard]] std::span<std::byte> part(uint64_t offset, uint64_t bytes) const noexcept;
  [[nodiscard]] std::span<std::byte> cluster(uint32_t number) const noexcept {
    return part(number * options_.cluster_bytes, options_.cluster_bytes);
  }

  const std::span<std::byte> memory_;
  const FreezeOptions options_;
  const Userfault userfault_;
  const UniqueFd wake_; // raised to make the serving thread look again

  // A leaf. Whoever protects or lets go of a page does it under the lock, where it matters in which order: a writer
  // let go after freeze() protected "everything" would be missed.
  mutable std::mutex lock_;
  Mode mode_ = Mode::kArming;
  std::optional<Error> failure_;
  Clusters early_;                      // kArming: let go since they were protected
  SideBuffer side_;                     // a slot's bytes are its cluster's, from its entry in aside_ to its finish
  std::vector<SideBuffer::Slot> aside_; // by cluster
  std::vector<bool> copied_;            // by extent: copy() has what is in memory
  std::vector<bool> finished_;          // and what was put aside
  Clusters throttled_;
  Clock::time_point throttled_since_;
  FreezeFigures figures_;
  bool ending_ = false;

  std::thread server_;
};

} // namespace stopvisor::vmm
