// SPDX-License-Identifier: Apache-2.0
#include "vmm/absent_memory.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "vmm/event_fd.h"
#include "vmm/guest_memory.h"
#include "vmm/side_buffer.h"

namespace stopvisor::vmm {
namespace {

constexpr size_t kMostAtOnce = 16;
constexpr size_t kPiece = 64 << 10; // takes about as long as it takes to wake who waits
// Each makes two mappings more, of which a process has 65,530 (vm.max_map_count), for all it does: threads, files
// and memory of its own.
constexpr size_t kMostIslands = 8192;

} // namespace

AbsentMemory::AbsentMemory(std::span<std::byte> memory, std::unique_ptr<MemoryOrigin> origin, AbsentOptions options,
                           Userfault userfault, UniqueFd wake)
    : memory_(memory), origin_(std::move(origin)), options_(std::move(options)), userfault_(std::move(userfault)),
      wake_(std::move(wake)),
      states_((memory.size() + options_.block_bytes - 1) / options_.block_bytes, State::kAbsent),
      released_(states_.size()), absent_(states_.size()) {}

std::expected<std::unique_ptr<AbsentMemory>, Error>
AbsentMemory::begin(std::span<std::byte> memory, std::unique_ptr<MemoryOrigin> origin, AbsentOptions options) {
  auto userfault = Userfault::open(options.operation);
  if (!userfault)
    return std::unexpected(userfault.error());
  auto wake = make_event("guest memory");
  if (!wake)
    return std::unexpected(wake.error());
  std::unique_ptr<AbsentMemory> absent(
      new AbsentMemory(memory, std::move(origin), std::move(options), *std::move(userfault), *std::move(wake)));
  if (const int refused = absent->userfault_.watch_absent(memory))
    return std::unexpected(system_error(absent->options_.operation, "userfaultfd", refused));
  try {
    absent->server_ = std::thread([raw = absent.get()] { raw->serve(); });
  } catch (const std::system_error& failure) {
    return std::unexpected(absent->error(failure.code().message()));
  }
  return absent;
}

AbsentMemory::~AbsentMemory() {
  forget();
  if (server_.joinable())
    server_.join();
}

std::span<std::byte> AbsentMemory::block(size_t number) const noexcept {
  const uint64_t begin = number * options_.block_bytes;
  return memory_.subspan(begin, std::min<uint64_t>(options_.block_bytes, memory_.size() - begin));
}

bool AbsentMemory::over() const {
  const std::lock_guard guard(lock_);
  return over_;
}

uint64_t AbsentMemory::absent_bytes() const {
  const std::lock_guard guard(lock_);
  return over_ ? 0 : std::min<uint64_t>(absent_ * options_.block_bytes, memory_.size());
}

uint64_t AbsentMemory::touched_blocks() const {
  const std::lock_guard guard(lock_);
  return touched_;
}

std::expected<void, Error> AbsentMemory::bring(std::vector<uint64_t> offsets) {
  std::ranges::sort(offsets);
  for (std::span<const uint64_t> left = offsets; !left.empty();) {
    const size_t number = left.front() / options_.block_bytes;
    const auto end = std::ranges::find_if(left, [&](uint64_t at) { return at / options_.block_bytes != number; });
    const auto here = left.first(static_cast<size_t>(end - left.begin()));
    if (auto done = bring_pages(number, here); !done)
      return done;
    left = left.subspan(here.size());
  }
  return {};
}

std::expected<void, Error> AbsentMemory::bring_all(std::stop_token stop, Progress* progress) {
  if (progress != nullptr)
    progress->total_bytes.store(memory_.size(), std::memory_order_relaxed);
  Buffer buffer(options_.block_bytes);
  for (size_t number = 0; number < states_.size(); ++number) {
    if (stop.stop_requested())
      return std::unexpected(error("was cancelled"));
    if (auto done = bring_block(number, buffer, nullptr); !done)
      return done;
    if (progress != nullptr)
      progress->done_bytes.fetch_add(block(number).size(), std::memory_order_relaxed);
  }
  return {};
}

bool AbsentMemory::begin_block(size_t number, For whom) {
  std::unique_lock lock(lock_);
  if (whom == For::kAsker) // the serving thread has better things to do: whoever is busy wakes who waits for it
    changed_.wait(lock, [&] { return states_[number] != State::kBusy; });
  if (over_ || forgotten_ || states_[number] == State::kPresent || states_[number] == State::kBusy)
    return false;
  states_[number] = State::kBusy;
  ++busy_;
  touched_ += whom == For::kToucher ? 1 : 0;
  return true;
}

void AbsentMemory::end_block(size_t number, State state) {
  const std::lock_guard guard(lock_);
  states_[number] = state;
  --busy_;
  absent_ -= state == State::kPresent ? 1 : 0;
  if (absent_ == 0 && !over_)
    end_watch();
  changed_.notify_all();
}

std::expected<void, Error> AbsentMemory::bring_pages(size_t number, std::span<const uint64_t> offsets) {
  const std::span<std::byte> whole = block(number);
  if (!has_small_pages() || origin_->is_zero(number * options_.block_bytes, whole.size())) {
    Buffer buffer(0); // zeros need none
    return bring_block(number, buffer, nullptr);
  }
  if (!begin_block(number, For::kAsker))
    return {};
  auto done = fetch_pages(number, offsets);
  end_block(number, done ? State::kAbsent : State::kBad);
  // Somebody may have touched another page of it meanwhile, and was left to us: he touches it again.
  userfault_.wake(whole);
  return done;
}

// It is read into new pages of the kernel's, which are touched where the block has something: of a guest's first
// MiB that is a few.
std::expected<void, Error> AbsentMemory::fetch_pages(size_t number, std::span<const uint64_t> offsets) {
  const uint64_t begin = number * options_.block_bytes;
  const std::span<std::byte> whole = block(number);
  auto room = SideBuffer::create(options_.operation, whole.size(), whole.size());
  if (!room)
    return std::unexpected(std::move(room.error()));
  const std::span content(room->at(room->take()), whole.size());
  if (auto read = origin_->read(begin, content, true); !read)
    return read;
  for (const uint64_t offset : offsets) {
    const uint64_t at = (offset - begin) / kPageBytes * kPageBytes;
    if (const int refused = userfault_.fill(whole.subspan(at, kPageBytes), content.data() + at))
      return std::unexpected(error(std::string("cannot put pages in place: ") + std::strerror(refused)));
  }
  return {};
}

std::expected<void, Error> AbsentMemory::bring_block(size_t number, Buffer& buffer, const std::byte* first) {
  if (!begin_block(number, first != nullptr ? For::kToucher : For::kAsker))
    return {};
  auto done = fetch(number, buffer, first);
  end_block(number, done ? State::kPresent : State::kBad);
  // Somebody may have touched it meanwhile, and was left to us. He touches it again, and the thread that serves
  // touches finds out for itself, and says so.
  if (!done && first == nullptr)
    userfault_.wake(block(number));
  return done;
}

std::expected<void, Error> AbsentMemory::fetch(size_t number, Buffer& buffer, const std::byte* first) {
  const std::span<std::byte> to = block(number);
  const uint64_t offset = number * options_.block_bytes;
  if (origin_->is_zero(offset, to.size()) && put_zeros(number))
    return {};
  buffer.bytes.resize(options_.block_bytes);
  const std::span<std::byte> content = std::span(buffer.bytes).first(to.size());
  auto done = origin_->read(offset, content, std::exchange(buffer.zeros, false));
  if (!done)
    return done;
  const int refused = first != nullptr && has_small_pages() ? place_in_pieces(to, content.data(), first)
                                                            : userfault_.fill(to, content.data());
  if (refused != 0)
    return std::unexpected(error(std::string("cannot put pages in place: ") + std::strerror(refused)));
  return {};
}

// Where the kernel does not watch any more it gives zeros by itself, in huge pages if it likes.
bool AbsentMemory::put_zeros(size_t number) {
  const bool release = [&] {
    const std::lock_guard guard(lock_);
    return claim_release(number);
  }();
  if (release && userfault_.release(block(number)) == 0)
    return true;
  return userfault_.fill_with_zeros(block(number)) == 0;
}

bool AbsentMemory::claim_release(size_t number) {
  const bool before = number > 0 && released_[number - 1];
  const bool after = number + 1 < released_.size() && released_[number + 1];
  const size_t islands = islands_ + 1 - (before ? 1 : 0) - (after ? 1 : 0);
  if (islands > kMostIslands)
    return false;
  islands_ = islands;
  released_[number] = true;
  return true;
}

// A page that somebody waits for comes first; and of the rest a piece at a time, so that who touches another page
// of the block meanwhile, which a guest that has just begun does, waits for a piece and not for all. RETURNS: 0 or
// an errno value. CONTEXT: the serving thread; small pages.
int AbsentMemory::place_in_pieces(std::span<std::byte> block, const std::byte* content, const std::byte* first) {
  const size_t begin = static_cast<size_t>(first - block.data()) / kPageBytes * kPageBytes;
  if (const int refused = userfault_.fill(block.subspan(begin, kPageBytes), content + begin))
    return refused;
  // What follows is likelier to be wanted next than what is before.
  for (const auto& [from, to] : {std::pair(begin + kPageBytes, block.size()), std::pair(size_t{0}, begin)})
    for (size_t at = from; at < to;) {
      const size_t bytes = std::min(kPiece, to - at);
      if (const int refused = place_touched(block, content))
        return refused;
      if (const int refused = userfault_.fill(block.subspan(at, bytes), content + at))
        return refused;
      at += bytes;
    }
  return 0;
}

// Touches elsewhere are left for later. CONTEXT: the serving thread.
int AbsentMemory::place_touched(std::span<std::byte> block, const std::byte* content) {
  if (const int failed = hear_touches())
    return failed;
  std::deque<const std::byte*> elsewhere;
  for (const std::byte* const address : touches_) {
    if (address < block.data() || address >= block.data() + block.size()) {
      elsewhere.push_back(address);
      continue;
    }
    const size_t at = static_cast<size_t>(address - block.data()) / kPageBytes * kPageBytes;
    if (const int refused = userfault_.fill(block.subspan(at, kPageBytes), content + at))
      return refused;
  }
  touches_.swap(elsewhere);
  return 0;
}

int AbsentMemory::hear_touches() {
  std::array<const std::byte*, kMostAtOnce> addresses{};
  const int count = userfault_.next(addresses);
  if (count > 0)
    touches_.insert(touches_.end(), addresses.begin(), addresses.begin() + count);
  return count < 0 ? -count : 0;
}

void AbsentMemory::forget() noexcept {
  std::unique_lock lock(lock_);
  forgotten_ = true; // nobody begins with a block any more
  changed_.wait(lock, [&] { return busy_ == 0; });
  if (!over_)
    end_watch();
}

// Not twice: others may watch the memory after it.
void AbsentMemory::end_watch() noexcept {
  over_ = true;
  userfault_.unwatch(memory_);
  raise_event(wake_.get());
}

void AbsentMemory::fail(const Error& error) const {
  if (options_.failed)
    options_.failed(error);
}

void AbsentMemory::serve() noexcept {
  std::array<pollfd, 2> sources{{{userfault_.fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}}};
  try {
    Buffer buffer(options_.block_bytes);
    while (!over()) {
      if (touches_.empty())
        (void)::poll(sources.data(), sources.size(), -1);
      if (const int failed = hear_touches())
        throw std::system_error(failed, std::generic_category(), "cannot learn who waits");
      if (touches_.empty())
        continue;
      const std::byte* const address = touches_.front();
      touches_.pop_front();
      const auto number = static_cast<size_t>(address - memory_.data()) / options_.block_bytes;
      if (auto done = bring_block(number, buffer, address); !done)
        fail(done.error());
    }
  } catch (const std::exception& failure) { // nor memory to read into
    fail(error(failure.what()));
  }
}

} // namespace stopvisor::vmm
