// SPDX-License-Identifier: Apache-2.0
#include "tools/migrate/page_sender.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "vmm/urgent_thread.h"

namespace stopvisor::migrate {
namespace {

using vmm::DirtyPages;
using vmm::Error;

constexpr uint64_t kWordPages = 64;
constexpr uint64_t kChunkWords = 16; // 4 MiB of memory
constexpr std::chrono::milliseconds kLook{100};
constexpr std::chrono::milliseconds kGrace{500};

} // namespace

PageSender::PageSender(std::vector<Call*> calls, uint64_t total_pages, SenderOptions options)
    : options_(std::move(options)), calls_(std::move(calls)), sent_(total_pages),
      limit_(options_.bytes_per_second) {
  for (size_t link = 0; link < calls_.size(); ++link)
    writers_.push_back(std::make_unique<BatchWriter>(&sent_, options_.zstd_level));
  for (size_t link = 0; link < calls_.size(); ++link)
    threads_.emplace_back([this, link] { run(link); });
}

PageSender::~PageSender() {
  {
    const std::lock_guard guard(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_)
    thread.join();
}

void PageSender::begin(uint32_t round, const DirtyPages& pages, bool urgent) {
  const std::lock_guard guard(mutex_);
  round_ = {round, &pages, urgent};
  next_chunk_.store(0, std::memory_order_relaxed); // under the lock, which senders take before they look
  busy_ = threads_.size();
  placed_ = 0;
  ++generation_;
  changed_.notify_all();
}

std::expected<SentRound, Error> PageSender::finish() {
  std::unique_lock lock(mutex_);
  // Senders look whether they are to stop between two batches; one that stands in a write to a peer that does not
  // read would come only when patience is over.
  std::optional<std::chrono::steady_clock::time_point> cut_at;
  while (!changed_.wait_for(lock, kLook, [this] { return busy_ == 0; })) {
    const auto now = std::chrono::steady_clock::now();
    if (!options_.stop.stop_requested())
      continue;
    if (!cut_at)
      cut_at = now + kGrace;
    else if (now > *cut_at)
      for (Call* call : calls_)
        call->link().cut();
  }
  if (failure_)
    return std::unexpected(*failure_);
  return SentRound{placed_};
}

BatchFigures PageSender::figures() const {
  const std::lock_guard guard(mutex_);
  BatchFigures sum;
  for (const auto& writer : writers_) {
    const BatchFigures& one = writer->figures();
    sum.looked_at += one.looked_at;
    sum.zeros += one.zeros;
    sum.copies += one.copies;
    sum.unchanged += one.unchanged;
    sum.sent += one.sent;
    sum.bytes += one.bytes;
  }
  return sum;
}

void PageSender::run(size_t link) {
  uint64_t seen = 0;
  bool urgent = false;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return ending_ || generation_ != seen; });
    if (generation_ == seen)
      return;
    seen = generation_;
    const Round round = round_;
    const bool failed = failure_.has_value();
    lock.unlock();
    if (round.urgent && !std::exchange(urgent, true))
      vmm::make_this_thread_urgent();
    auto placed = failed ? std::expected<uint64_t, Error>(0) : send(link, round);
    lock.lock();
    if (placed)
      placed_ += *placed;
    else if (!failure_)
      failure_ = std::move(placed.error());
    if (--busy_ == 0)
      changed_.notify_all();
  }
}

std::expected<uint64_t, Error> PageSender::send(size_t link, const Round& round) {
  uint64_t placed = 0;
  Chunk chunk;
  while (take_chunk(*round.pages, chunk))
    for (uint64_t word = chunk.begin; word < chunk.end; ++word) {
      if (chunk.slot->words[word] == 0)
        continue;
      const auto done = send_word(link, *chunk.slot, word);
      if (!done)
        return done;
      placed += *done;
    }
  if (!writers_[link]->empty()) {
    const auto done = send_batch(link);
    if (!done)
      return done;
    placed += *done;
  }
  const RoundMark mark{.round = round.number, .pages = placed};
  if (auto said = calls_[link]->voice().say(FrameKind::kRoundEnd, encode(mark)); !said)
    return std::unexpected(std::move(said.error()));
  return placed;
}

std::expected<uint64_t, Error> PageSender::send_word(size_t link, const DirtyPages::Slot& slot, uint64_t word) {
  uint64_t placed = 0;
  uint64_t bits = slot.words[word];
  if (options_.progress != nullptr) // relaxed: a figure for people
    options_.progress->done_bytes.fetch_add(static_cast<uint64_t>(std::popcount(bits)) * kPageBytes,
                                            std::memory_order_relaxed);
  for (; bits != 0; bits &= bits - 1) {
    const uint64_t page = word * kWordPages + static_cast<uint64_t>(std::countr_zero(bits));
    const vmm::Gpa gpa{slot.base.value + page * kPageBytes};
    while (!writers_[link]->add(gpa, slot.first + page, slot.host + page * kPageBytes)) {
      const auto done = send_batch(link);
      if (!done)
        return done;
      placed += *done;
    }
  }
  return placed;
}

std::expected<uint64_t, Error> PageSender::send_batch(size_t link) {
  if (options_.stop.stop_requested())
    return std::unexpected(calls_[link]->link().error("was cancelled"));
  auto payload = writers_[link]->finish();
  if (!payload)
    return std::unexpected(std::move(payload.error()));
  const uint64_t bytes = payload->parts[0].size() + payload->parts[1].size();
  limit_.take(bytes, options_.stop);
  if (auto said = calls_[link]->voice().say(FrameKind::kPages, payload->parts, payload->flags); !said)
    return std::unexpected(std::move(said.error()));
  payload_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  return payload->pages;
}

bool PageSender::take_chunk(const DirtyPages& pages, Chunk& chunk) noexcept {
  // relaxed: each number once; the round was published under the lock.
  uint64_t number = next_chunk_.fetch_add(1, std::memory_order_relaxed);
  for (const DirtyPages::Slot& slot : pages.slots()) {
    const uint64_t chunks = (slot.words.size() + kChunkWords - 1) / kChunkWords;
    if (number < chunks) {
      chunk = {&slot, number * kChunkWords, std::min<uint64_t>((number + 1) * kChunkWords, slot.words.size())};
      return true;
    }
    number -= chunks;
  }
  return false;
}

} // namespace stopvisor::migrate
