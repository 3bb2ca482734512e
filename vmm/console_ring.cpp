// SPDX-License-Identifier: Apache-2.0
#include "vmm/console_ring.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace stopvisor::vmm {

void ConsoleRing::put(std::byte byte) noexcept {
  keep(byte);
  if (next_ != nullptr)
    next_->put(byte);
}

void ConsoleRing::keep(std::byte byte) noexcept {
  const std::lock_guard guard(lock_);
  ring_[end_ % kBytes] = byte;
  ++end_;
  wake_readers();
}

void ConsoleRing::close() noexcept {
  const std::lock_guard guard(lock_);
  closed_ = true;
  wake_readers();
}

void ConsoleRing::wake_readers() noexcept {
  for (Reader* const reader : readers_) {
    if (!std::exchange(reader->waits_, false))
      continue;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(reader->event_.get(), &one, sizeof(one)); // it was 0
  }
}

size_t ConsoleRing::copy(uint64_t from, std::span<std::byte> to) const noexcept {
  const size_t total = static_cast<size_t>(std::min<uint64_t>(end_ - from, to.size()));
  for (size_t done = 0; done < total;) {
    const size_t at = static_cast<size_t>((from + done) % kBytes);
    const size_t step = std::min(total - done, kBytes - at);
    std::memcpy(to.data() + done, ring_.data() + at, step);
    done += step;
  }
  return total;
}

std::vector<std::byte> ConsoleRing::kept() const {
  const std::lock_guard guard(lock_);
  std::vector<std::byte> all(static_cast<size_t>(end_ - begin()));
  (void)copy(begin(), all); // all of it: it was made as large
  return all;
}

std::expected<std::unique_ptr<ConsoleRing::Reader>, Error> ConsoleRing::Reader::start(ConsoleRing& ring) {
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event)
    return std::unexpected(system_error("console", "eventfd", errno));
  std::unique_ptr<Reader> reader(new Reader(ring, std::move(event)));
  const std::lock_guard guard(ring.lock_);
  reader->position_ = ring.begin();
  ring.readers_.push_back(reader.get());
  return reader;
}

ConsoleRing::Reader::~Reader() {
  const std::lock_guard guard(ring_.lock_);
  std::erase(ring_.readers_, this);
}

ConsoleRing::Step ConsoleRing::Reader::read(std::span<std::byte> to) noexcept {
  const std::lock_guard guard(ring_.lock_);
  Step step;
  step.lost = std::max(ring_.begin(), position_) - position_;
  position_ += step.lost;
  step.bytes = ring_.copy(position_, to);
  position_ += step.bytes;
  if (step.bytes != 0 || step.lost != 0)
    return step;
  step.ended = ring_.closed_ && position_ == ring_.end_;
  uint64_t count = 0;
  // NOLINTNEXTLINE(clang-analyzer-unix.BlockInCriticalSection): the event's descriptor is nonblocking
  [[maybe_unused]] const ssize_t got = ::read(event_.get(), &count, sizeof(count));
  waits_ = position_ == ring_.end_ && !step.ended;
  return step;
}

} // namespace stopvisor::vmm
