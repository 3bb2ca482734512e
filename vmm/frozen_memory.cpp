// SPDX-License-Identifier: Apache-2.0
#include "vmm/frozen_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "vmm/event_fd.h"

namespace stopvisor::vmm {
namespace {

constexpr uint64_t kPieceBytes = 2 << 20;    // protected at once: a huge page, which stays one then
constexpr uint64_t kUnwatchBytes = 64 << 20; // writers wait for the end of one ioctl at most
constexpr uint64_t kLeastSideBytes = 64 << 20;
constexpr size_t kFewClusters = 64; // which freeze() protects in well under a millisecond
constexpr int kMostRounds = 16;     // a guest that writes faster than that is held a little longer

uint64_t side_limit(const FreezeOptions& options, uint64_t memory_bytes) {
  return options.side_limit_bytes != 0 ? options.side_limit_bytes : std::max(memory_bytes / 4, kLeastSideBytes);
}

} // namespace

FrozenMemory::FrozenMemory(std::span<std::byte> memory, FreezeOptions options, Userfault userfault, SideBuffer side,
                           UniqueFd wake)
    : memory_(memory), options_(std::move(options)), userfault_(std::move(userfault)), wake_(std::move(wake)),
      side_(std::move(side)), aside_((memory.size() + options_.cluster_bytes - 1) / options_.cluster_bytes),
      copied_((memory.size() + kExtentBytes - 1) / kExtentBytes), finished_(copied_.size()) {
  std::ranges::fill(aside_, SideBuffer::kNone);
}

std::expected<std::unique_ptr<FrozenMemory>, Error> FrozenMemory::create(std::span<std::byte> memory,
                                                                         FreezeOptions options) {
  auto userfault = Userfault::open(options.operation);
  if (!userfault)
    return std::unexpected(std::move(userfault.error()));
  auto side = SideBuffer::create(options.operation, side_limit(options, memory.size()), options.cluster_bytes);
  if (!side)
    return std::unexpected(std::move(side.error()));
  auto wake = make_event("frozen memory");
  if (!wake)
    return std::unexpected(std::move(wake.error()));
  std::unique_ptr<FrozenMemory> frozen(
      new FrozenMemory(memory, std::move(options), *std::move(userfault), *std::move(side), *std::move(wake)));
  // Before anything is protected there is somebody to serve those who write to it.
  try {
    frozen->server_ = std::thread([&self = *frozen] { self.serve(); });
  } catch (const std::system_error& failure) {
    return std::unexpected(frozen->error(std::string("cannot make a thread: ") + failure.what()));
  }
  return frozen;
}

FrozenMemory::~FrozenMemory() {
  {
    const std::scoped_lock guard(lock_);
    mode_ = Mode::kOver;
  }
  // In pieces: the kernel lets nobody else change the mappings, or fault, during one.
  for (uint64_t at = 0; at < memory_.size(); at += kUnwatchBytes)
    userfault_.unwatch(part(at, kUnwatchBytes));
  {
    const std::scoped_lock guard(lock_);
    ending_ = true;
  }
  raise_event(wake_.get());
  if (server_.joinable())
    server_.join();
  userfault_.wake(memory_); // one that the thread was told of, and had no more turn to serve
}

std::expected<void, Error> FrozenMemory::arm() {
  if (const int refused = userfault_.watch(memory_))
    return std::unexpected(error(std::string("cannot watch the memory: ") + std::strerror(refused)));
  for (uint64_t at = 0; at < memory_.size(); at += kPieceBytes) {
    if (options_.stop.stop_requested())
      return std::unexpected(error("was cancelled"));
    if (auto armed = arm_piece(part(at, kPieceBytes)); !armed)
      return armed;
    this->at(FreezePoint::kArmed, at);
  }
  return arm_again();
}

// A page that is not there has nowhere to note its protection, in private memory before Linux 6.4: then each gets
// the page of zeros first, by being read. Nothing takes a page away again but what calls fail() before.
std::expected<void, Error> FrozenMemory::arm_piece(std::span<std::byte> piece) {
  if ((options_.populate || !userfault_.marks_absent_pages()) &&
      ::madvise(piece.data(), piece.size(), MADV_POPULATE_READ) != 0)
    return std::unexpected(error(std::string("cannot populate the memory: ") + std::strerror(errno)));
  if (const int refused = userfault_.protect(piece))
    return std::unexpected(cannot_protect(refused));
  return {};
}

// Each round takes about as long as there is to protect again, and so leaves less to the next one.
std::expected<void, Error> FrozenMemory::arm_again() {
  for (int round = 0; round < kMostRounds; ++round) {
    if (options_.stop.stop_requested())
      return std::unexpected(error("was cancelled"));
    Clusters again;
    {
      const std::scoped_lock guard(lock_);
      if (auto fine = check(); !fine || early_.size() <= kFewClusters)
        return fine;
      again.swap(early_);
    }
    // Without the lock: one of these that is written, and noted, meanwhile is either protected in the end, or let
    // go and noted.
    uint64_t runs = 0;
    if (const int refused = protect_runs(std::move(again), runs))
      return std::unexpected(cannot_protect(refused));
  }
  return {};
}

int FrozenMemory::protect_runs(Clusters clusters, uint64_t& runs) {
  std::ranges::sort(clusters);
  for (size_t first = 0; first < clusters.size();) {
    size_t last = first;
    while (last + 1 < clusters.size() && clusters[last + 1] <= clusters[last] + 1)
      ++last;
    const uint64_t count = clusters[last] - clusters[first] + 1;
    if (const int refused =
            userfault_.protect(part(clusters[first] * options_.cluster_bytes, count * options_.cluster_bytes)))
      return refused;
    ++runs;
    first = last + 1;
  }
  return 0;
}

// Under the lock from beginning to end: the serving thread lets nobody go in between. Whoever wrote before has
// written before the stop, and whoever comes from now on is served as of kFrozen.
std::expected<void, Error> FrozenMemory::freeze() {
  const std::scoped_lock guard(lock_);
  if (auto fine = check(); !fine)
    return fine;
  if (const int refused = protect_runs(std::exchange(early_, {}), figures_.late_runs)) {
    fail_locked(std::string("cannot protect the memory: ") + std::strerror(refused));
    return check();
  }
  mode_ = Mode::kFrozen;
  return {};
}

std::expected<void, Error> FrozenMemory::copy(uint64_t offset, std::span<std::byte> to) {
  const uint64_t extent = offset / kExtentBytes;
  // First what is there. A cluster of it that is let go meanwhile has been put aside before.
  copy_words(to.data(), memory_.data() + offset, to.size());
  at(FreezePoint::kCopied, offset);

  const uint64_t unit = options_.cluster_bytes;
  const auto first = static_cast<uint32_t>(offset / unit);
  const auto last = static_cast<uint32_t>((offset + to.size() - 1) / unit);
  std::vector<std::pair<uint32_t, SideBuffer::Slot>> aside;
  {
    const std::scoped_lock guard(lock_);
    if (auto fine = check(); !fine)
      return fine;
    copied_[extent] = true; // from here on nothing of it is put aside; what was stays until it is finished
    for (uint32_t number = first; number <= last; ++number)
      if (aside_[number] != SideBuffer::kNone)
        aside.emplace_back(number, aside_[number]);
    // Two extents together: what is a huge page stays one.
    const uint64_t piece = offset / kPieceBytes * kPieceBytes;
    const uint64_t second = piece / kExtentBytes + 1;
    if (copied_[second - 1] && (second >= copied_.size() || copied_[second]))
      if (const int refused = userfault_.unprotect(part(piece, kPieceBytes))) {
        fail_locked(std::string("cannot let go of the memory: ") + std::strerror(refused));
        return check();
      }
  }
  for (const auto& [number, slot] : aside) {
    const uint64_t begin = std::max(number * unit, offset);
    const uint64_t end = std::min((number + uint64_t{1}) * unit, offset + to.size());
    std::memcpy(to.data() + (begin - offset), side_.at(slot) + (begin - number * unit), end - begin);
  }
  {
    const std::scoped_lock guard(lock_);
    finished_[extent] = true;
    for (const auto& [number, slot] : aside) {
      const uint64_t from = number * unit / kExtentBytes;
      const uint64_t until =
          std::min<uint64_t>(((number + uint64_t{1}) * unit - 1) / kExtentBytes, finished_.size() - 1);
      if (std::all_of(finished_.begin() + static_cast<std::ptrdiff_t>(from),
                      finished_.begin() + static_cast<std::ptrdiff_t>(until) + 1, [](bool done) { return done; }))
        side_.give_back(std::exchange(aside_[number], SideBuffer::kNone));
    }
    if (!throttled_.empty())
      raise_event(wake_.get());
  }
  at(FreezePoint::kFinished, offset);
  return {};
}

void FrozenMemory::copy_words(std::byte* to, const std::byte* from, size_t bytes) noexcept {
  for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
    // Relaxed: nothing is concluded from a word before aside_ was looked at, under lock_.
    const uint64_t word = __atomic_load_n(reinterpret_cast<const uint64_t*>(from + at), __ATOMIC_RELAXED);
    std::memcpy(to + at, &word, sizeof(word));
  }
}

void FrozenMemory::fail(const std::string& reason) noexcept {
  const std::scoped_lock guard(lock_);
  fail_locked(reason);
  userfault_.unwatch(memory_); // nobody waits any more, and nobody will
}

FreezeFigures FrozenMemory::figures() const {
  const std::scoped_lock guard(lock_);
  FreezeFigures figures = figures_;
  figures.side_peak_bytes = side_.peak_bytes();
  if (!throttled_.empty())
    figures.throttled_for += Clock::now() - throttled_since_;
  return figures;
}

// Where it has failed, that is why.
Error FrozenMemory::cannot_protect(int refused) const {
  const std::scoped_lock guard(lock_);
  return failure_ ? *failure_ : error(std::string("cannot protect the memory: ") + std::strerror(refused));
}

std::expected<void, Error> FrozenMemory::check() const {
  if (failure_)
    return std::unexpected(*failure_);
  return {};
}

Error FrozenMemory::error(std::string reason) const {
  return {options_.operation, "", std::move(reason), Status::kFailed};
}

std::span<std::byte> FrozenMemory::part(uint64_t offset, uint64_t bytes) const noexcept {
  return memory_.subspan(offset, std::min<uint64_t>(bytes, memory_.size() - offset));
}

} // namespace stopvisor::vmm
