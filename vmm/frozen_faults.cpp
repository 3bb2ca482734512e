// SPDX-License-Identifier: Apache-2.0
// The thread that serves those who write to protected memory.
#include <poll.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "vmm/event_fd.h"
#include "vmm/frozen_memory.h"
#include "vmm/urgent_thread.h"

namespace stopvisor::vmm {
namespace {

constexpr size_t kMostAtOnce = 16;

} // namespace

void FrozenMemory::serve() noexcept {
  // Guests wait for it, and a stop for its lock. It works as often as there are clusters, and no more.
  make_this_thread_urgent();
  std::array<pollfd, 2> sources{{{userfault_.fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}}};
  try {
    for (;;) {
      (void)::poll(sources.data(), sources.size(), -1);
      if (clear_event(wake_.get())) {
        retry_throttled();
        const std::scoped_lock guard(lock_);
        if (ending_)
          return;
      }
      std::array<const std::byte*, kMostAtOnce> writers{};
      const int count = userfault_.next(writers);
      if (count < 0)
        throw std::system_error(-count, std::generic_category(), "cannot learn who writes");
      for (const std::byte* const address : std::span(writers).first(static_cast<size_t>(count)))
        serve_writer(static_cast<uint64_t>(address - memory_.data()));
    }
  } catch (const std::exception& failure) { // nor memory to note things in
    fail(failure.what());
    userfault_.unwatch(memory_); // nobody will be served any more
  }
}

void FrozenMemory::serve_writer(uint64_t offset) {
  at(FreezePoint::kFault, offset);
  const auto number = static_cast<uint32_t>(offset / options_.cluster_bytes);
  bool served = false;
  {
    const std::scoped_lock guard(lock_);
    served = let_go(number);
    if (!served) {
      ++figures_.throttled;
      if (throttled_.empty())
        throttled_since_ = Clock::now();
      throttled_.push_back(number);
    }
  }
  at(served ? FreezePoint::kServed : FreezePoint::kThrottled, offset);
}

// A writer that was told of may have gone meanwhile (a signal), or another one's service was its own as well: then
// this is once too often, and does no harm. Before the instant the cluster is noted once more; after it, it is put
// aside though nobody writes to it.
bool FrozenMemory::let_go(uint32_t number) {
  const std::span<std::byte> bytes = cluster(number);
  switch (mode_) {
  case Mode::kArming:
    ++figures_.early_writes;
    early_.push_back(number); // before it is let go: there is no write that nobody knows of
    break;
  case Mode::kFrozen:
    if (wanted(number)) {
      const SideBuffer::Slot slot = side_.take();
      if (slot == SideBuffer::kNone)
        return false;
      copy_words(side_.at(slot), bytes.data(), bytes.size());
      aside_[number] = slot;
      figures_.preserved_bytes += bytes.size();
    }
    break;
  case Mode::kOver:
    break;
  }
  if (const int refused = userfault_.unprotect(bytes)) {
    if (mode_ != Mode::kOver) // else it is not watched any more
      fail_locked(std::string("cannot let go of the memory: ") + std::strerror(refused));
    userfault_.unwatch(bytes);
  }
  return true;
}

// Whether some of it was not copied yet, nor put aside.
bool FrozenMemory::wanted(uint32_t number) const noexcept {
  if (aside_[number] != SideBuffer::kNone)
    return false;
  const uint64_t begin = number * options_.cluster_bytes;
  const uint64_t end = std::min<uint64_t>(begin + options_.cluster_bytes, memory_.size());
  for (uint64_t extent = begin / kExtentBytes; extent <= (end - 1) / kExtentBytes; ++extent)
    if (!copied_[extent])
      return true;
  return false;
}

void FrozenMemory::retry_throttled() {
  Clusters served;
  {
    const std::scoped_lock guard(lock_);
    if (throttled_.empty())
      return;
    while (!throttled_.empty() && let_go(throttled_.back())) {
      served.push_back(throttled_.back());
      throttled_.pop_back();
    }
    if (throttled_.empty())
      figures_.throttled_for += Clock::now() - throttled_since_;
  }
  for (const uint32_t number : served)
    at(FreezePoint::kServed, number * options_.cluster_bytes);
}

// CONTEXT: under lock_.
void FrozenMemory::fail_locked(std::string reason) noexcept {
  if (!failure_)
    failure_ = error(std::move(reason));
  mode_ = Mode::kOver;
  raise_event(wake_.get()); // for who waits for room
}

} // namespace stopvisor::vmm
