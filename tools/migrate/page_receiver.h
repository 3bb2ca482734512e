// SPDX-License-Identifier: Apache-2.0
// Puts the pages of a migration in place, from one or several links at once, round by round.
//
// A page may be sent in one round over one link and in the next over another, so nobody reads on from the end of a
// round before all links have come to it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <expected>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tools/migrate/call.h"
#include "tools/migrate/page_batch.h"
#include "vmm/error.h"
#include "vmm/guest_memory.h"
#include "vmm/progress.h"

namespace stopvisor::migrate {

class PageReceiver {
public:
  // Into `memory`, which reads as zeros. `streams` are the links besides `control`; all outlive the object.
  PageReceiver(std::string operation, const vmm::GuestMemory& memory, Call& control,
               std::vector<std::unique_ptr<Call>>& streams, vmm::Progress* progress);
  // Cuts the streams.
  ~PageReceiver();
  PageReceiver(const PageReceiver&) = delete;
  PageReceiver& operator=(const PageReceiver&) = delete;

  // Takes pages until something else comes on the control link. CONTEXT: one thread; blocks.
  // RETURNS: that frame; a link's error, what is wrong with a batch or a round, what the source says.
  [[nodiscard]] std::expected<Frame, vmm::Error> receive();
  // receive() fails, wherever it waits. CONTEXT: any thread.
  void cancel() noexcept;
  // Whether what came is what was sent: compares the links' digests. CONTEXT: after receive(). RETURNS: kFailed.
  [[nodiscard]] std::expected<void, vmm::Error> check(const std::vector<LinkDigest>& sent) const;
  [[nodiscard]] uint32_t rounds() const noexcept { return rounds_; } // CONTEXT: after receive()

private:
  class Target;
  struct AtEnd { // of a round, one link's
    uint64_t frames = 0;
    uint64_t digest = 0;
  };
  void run_stream(size_t link);
  // One link's frames up to something that is neither pages nor a round's end.
  [[nodiscard]] std::expected<Frame, vmm::Error> read_pages(size_t link);
  [[nodiscard]] std::expected<void, vmm::Error> meet(size_t link, const RoundMark& mark, uint64_t placed);
  void fail(const vmm::Error& error) noexcept;
  [[nodiscard]] Call& call(size_t link) noexcept { return link == 0 ? control_ : *streams_[link - 1]; }

  const std::string operation_;
  Call& control_;
  std::vector<std::unique_ptr<Call>>& streams_;
  std::unique_ptr<Target> target_;
  vmm::Progress* const progress_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<AtEnd> ends_; // this and the following under mutex_, until receive() has returned
  uint32_t rounds_ = 0;     // that are complete
  size_t arrived_ = 0;      // links at the end of the one under way
  uint64_t pages_ = 0;      // of it
  std::optional<vmm::Error> failure_;

  std::vector<std::thread> threads_; // last
};

} // namespace stopvisor::migrate
