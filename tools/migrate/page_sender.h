// SPDX-License-Identifier: Apache-2.0
// Sends rounds of pages over one or several links at once, a thread for each.
//
//   main                                          each sender
//   begin(round, pages) ── there is a round ──▶   takes chunks of the set until none is left, sends their pages,
//   finish()            ◀── the last is done ──   then says that its part of the round is over
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <vector>

#include "tools/migrate/call.h"
#include "tools/migrate/page_batch.h"
#include "tools/migrate/rate_limit.h"
#include "vmm/dirty_pages.h"
#include "vmm/error.h"
#include "vmm/progress.h"

namespace stopvisor::migrate {

struct SenderOptions {
  int zstd_level = 0; // 0: pages are sent as they are
  uint64_t bytes_per_second = 0;
  vmm::Progress* progress = nullptr; // done_bytes is raised by what was looked at
  std::stop_token stop;              // of everything: what is sent then is not whole
};

struct SentRound {
  uint64_t pages = 0; // that the destination has to put in place
};

class PageSender {
public:
  // `calls`: the control link's first. They and the memory outlive the object. `total_pages`: of all memory.
  PageSender(std::vector<Call*> calls, uint64_t total_pages, SenderOptions options);
  // CONTEXT: where links may be stuck they are cut before.
  ~PageSender();
  PageSender(const PageSender&) = delete;
  PageSender& operator=(const PageSender&) = delete;

  // Sends all of `pages`, which stay as they are until finish(). `urgent`: the guest is held for it.
  // CONTEXT: the thread that finishes it; one round at a time; does not block.
  void begin(uint32_t round, const vmm::DirtyPages& pages, bool urgent);
  // Waits until all of it was said. RETURNS: the first link's error; "was cancelled". No round can follow it then.
  [[nodiscard]] std::expected<SentRound, vmm::Error> finish();

  // Of everything. CONTEXT: between two rounds.
  [[nodiscard]] BatchFigures figures() const;
  // So far. CONTEXT: any thread.
  [[nodiscard]] uint64_t payload_bytes() const noexcept { return payload_bytes_.load(std::memory_order_relaxed); }

private:
  struct Round {
    uint32_t number = 0;
    const vmm::DirtyPages* pages = nullptr;
    bool urgent = false;
  };
  void run(size_t link);
  [[nodiscard]] std::expected<uint64_t, vmm::Error> send(size_t link, const Round& round);
  [[nodiscard]] std::expected<uint64_t, vmm::Error> send_batch(size_t link);
  [[nodiscard]] std::expected<uint64_t, vmm::Error> send_word(size_t link, const vmm::DirtyPages::Slot& slot,
                                                              uint64_t word);
  // The next words of the set that are nobody's yet. RETURNS: false where there are none.
  struct Chunk {
    const vmm::DirtyPages::Slot* slot = nullptr;
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  [[nodiscard]] bool take_chunk(const vmm::DirtyPages& pages, Chunk& chunk) noexcept;

  const SenderOptions options_;
  const std::vector<Call*> calls_;
  SentPages sent_;
  RateLimit limit_;
  std::vector<std::unique_ptr<BatchWriter>> writers_; // one for each link, its thread's
  std::atomic<uint64_t> payload_bytes_{0};            // a figure by itself
  std::atomic<uint64_t> next_chunk_{0};               // of the round

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Round round_;             // this and the following under mutex_
  uint64_t generation_ = 0; // of rounds
  size_t busy_ = 0;
  uint64_t placed_ = 0; // pages, in this round
  std::optional<vmm::Error> failure_;
  bool ending_ = false;

  std::vector<std::thread> threads_; // last
};

} // namespace stopvisor::migrate
