// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/page_receiver.h"

#include <cstring>
#include <utility>

namespace stopvisor::migrate {

using vmm::Error;

// Guest memory, of which it is known what has been written: zeros need not be where nothing was.
class PageReceiver::Target final : public PageTarget {
public:
  explicit Target(const vmm::GuestMemory& memory) : memory_(memory) {
    for (const vmm::MemorySlot& slot : memory.slots())
      written_.emplace_back((slot.size_bytes / kPageBytes + 63) / 64);
  }
  bool has(vmm::Gpa gpa, uint64_t pages) noexcept override {
    return !memory_.range(gpa, pages * kPageBytes).empty();
  }
  std::span<std::byte> pages(vmm::Gpa gpa, uint64_t pages) noexcept override {
    const auto range = memory_.range(gpa, pages * kPageBytes);
    if (!range.empty())
      for_each(gpa, pages, [](Word& word, uint64_t bit) {
        // relaxed: one thread writes a page at a time, and rounds are ordered by the receiver's lock
        if ((word.load(std::memory_order_relaxed) & bit) == 0)
          word.fetch_or(bit, std::memory_order_relaxed);
        return true;
      });
    return range;
  }
  bool zero(vmm::Gpa gpa, uint64_t pages) noexcept override {
    const auto range = memory_.range(gpa, pages * kPageBytes);
    if (range.empty())
      return false;
    uint64_t at = 0;
    for_each(gpa, pages, [&](Word& word, uint64_t bit) {
      if ((word.load(std::memory_order_relaxed) & bit) != 0)
        std::memset(range.data() + at, 0, kPageBytes);
      at += kPageBytes;
      return true;
    });
    return true;
  }

private:
  using Word = std::atomic<uint64_t>;

  // CONTEXT: all of it lies in one slot.
  template <class Do>
  void for_each(vmm::Gpa gpa, uint64_t pages, Do what) noexcept {
    const auto slots = memory_.slots();
    for (size_t i = 0; i < slots.size(); ++i) {
      if (gpa.value < slots[i].base.value || gpa.value >= slots[i].base.value + slots[i].size_bytes)
        continue;
      const uint64_t first = (gpa.value - slots[i].base.value) / kPageBytes;
      for (uint64_t page = first; page < first + pages; ++page)
        what(written_[i][page / 64], uint64_t{1} << (page % 64));
    }
  }

  const vmm::GuestMemory& memory_;
  std::vector<std::vector<Word>> written_; // by slot and page
};

PageReceiver::PageReceiver(std::string operation, const vmm::GuestMemory& memory, Call& control,
                           std::vector<std::unique_ptr<Call>>& streams, vmm::Progress* progress)
    : operation_(std::move(operation)), control_(control), streams_(streams),
      target_(std::make_unique<Target>(memory)), progress_(progress), ends_(streams.size() + 1) {
  for (size_t link = 1; link <= streams_.size(); ++link)
    threads_.emplace_back([this, link] { run_stream(link); });
}

PageReceiver::~PageReceiver() {
  fail(Error{operation_, "", "is over", vmm::Status::kFailed});
  for (const auto& stream : streams_)
    stream->link().cut();
  for (std::thread& thread : threads_)
    thread.join();
}

void PageReceiver::fail(const Error& error) noexcept {
  const std::lock_guard guard(mutex_);
  if (!failure_)
    failure_ = error;
  changed_.notify_all();
}

void PageReceiver::cancel() noexcept {
  fail(Error{operation_, "", "was cancelled", vmm::Status::kFailed});
  control_.link().cut();
  for (const auto& stream : streams_)
    stream->link().cut();
}

// A stream that ends says nothing by it: the control link does.
void PageReceiver::run_stream(size_t link) {
  const auto last = read_pages(link);
  Error error = last ? call(link).link().error("sends what is for the control link") : last.error();
  {
    const std::lock_guard guard(mutex_);
    if (failure_)
      return;
    failure_ = error;
    changed_.notify_all();
  }
  control_.refuse(error);
  control_.link().cut(); // whoever waits for its frames waits in vain
}

std::expected<Frame, Error> PageReceiver::receive() {
  auto frame = read_pages(0);
  const std::lock_guard guard(mutex_);
  if (failure_) // what came first; the control link is cut for it, or about to be
    return std::unexpected(*failure_);
  // A source that takes its guest back now hangs up everywhere, and what it says of that on the control link is
  // still to be read: streams have nothing more to carry, and their ends mean nothing.
  failure_ = Error{operation_, "", "is over", vmm::Status::kFailed};
  return frame;
}

std::expected<Frame, Error> PageReceiver::read_pages(size_t link) {
  BatchReader batches(call(link).welcome().features);
  Frame frame;
  uint64_t placed = 0;
  for (;;) {
    if (auto read = call(link).reader().read(frame); !read)
      return std::unexpected(std::move(read.error()));
    if (frame.kind == FrameKind::kPages) {
      const auto done = batches.apply(operation_, frame.flags, frame.payload, *target_);
      if (!done)
        return std::unexpected(done.error());
      placed += *done;
      if (progress_ != nullptr) // relaxed: a figure for people
        progress_->done_bytes.fetch_add(*done * kPageBytes, std::memory_order_relaxed);
    } else if (frame.kind == FrameKind::kRoundEnd) {
      const auto mark = decode_round(operation_, frame.payload);
      if (!mark)
        return std::unexpected(mark.error());
      if (auto met = meet(link, *mark, std::exchange(placed, 0)); !met)
        return std::unexpected(std::move(met.error()));
    } else if (frame.kind == FrameKind::kRefusal) {
      return std::unexpected(call(link).refused_by(frame));
    } else {
      return frame;
    }
  }
}

std::expected<void, Error> PageReceiver::meet(size_t link, const RoundMark& mark, uint64_t placed) {
  std::unique_lock lock(mutex_);
  if (mark.round != rounds_ || mark.pages != placed)
    return std::unexpected(call(link).link().error("counts its rounds or their pages otherwise"));
  const FrameTally& tally = call(link).reader().tally();
  ends_[link] = {tally.frames, tally.digest};
  pages_ += placed;
  const uint32_t round = rounds_;
  if (++arrived_ < streams_.size() + 1) {
    changed_.wait(lock, [&] { return rounds_ != round || failure_.has_value(); });
    return failure_ ? std::expected<void, Error>(std::unexpected(*failure_)) : std::expected<void, Error>();
  }
  arrived_ = 0;
  const RoundMark done{.round = round, .pages = std::exchange(pages_, 0)};
  ++rounds_;
  changed_.notify_all();
  lock.unlock();
  return control_.voice().say(FrameKind::kRoundDone, encode(done));
}

std::expected<void, Error> PageReceiver::check(const std::vector<LinkDigest>& sent) const {
  bool same = sent.size() == ends_.size();
  for (size_t link = 0; same && link < ends_.size(); ++link)
    same = sent[link].number == link && sent[link].frames == ends_[link].frames &&
           sent[link].digest == ends_[link].digest;
  if (same)
    return {};
  return std::unexpected(Error{operation_, control_.link().name(),
                               "what came is not what was sent: the links' digests differ", vmm::Status::kFailed});
}

} // namespace stopvisor::migrate
