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

Error AbsentMemory::cannot_place(int refused) const {
  return error(std::string("cannot put pages in place: ") + std::strerror(refused));
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
  if (!offsets.empty() && offsets.back() >= memory_.size())
    return std::unexpected(error("ends before a page that the start needs, at " + std::to_string(offsets.back())));
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

class AbsentMemory::Turn {
public:
  Turn(AbsentMemory& memory, size_t number, For whom) noexcept
      : block(memory.block(number)), memory_(memory), number_(number), whom_(whom) {}
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  // RETURNS: false where nothing is to be done.
  [[nodiscard]] bool begin();
  // Places [at, at + bytes) of the block. Pages that we have placed before stay as they are; one that is there and
  // not by us is EEXIST. RETURNS: 0 or an errno value.
  [[nodiscard]] int put(size_t at, size_t bytes, const std::byte* content);
  [[nodiscard]] int put_page(size_t at, const std::byte* content) {
    return put(at / kPageBytes * kPageBytes, kPageBytes, content);
  }

  const std::span<std::byte> block;
  State ends = State::kBad; // unless somebody says otherwise

private:
  AbsentMemory& memory_;
  const size_t number_;
  const For whom_;
  bool begun_ = false;
  std::vector<bool> there_;
};

bool AbsentMemory::Turn::begin() {
  there_.resize(block.size() / kPageBytes);
  AbsentMemory& memory = memory_;
  std::unique_lock lock(memory.lock_);
  State& state = memory.states_[number_];
  if (whom_ == For::kAsker) // the serving thread has better things to do: whoever is busy wakes who waits for it
    memory.changed_.wait(lock, [&] { return state != State::kBusy; });
  if (memory.over_ || memory.forgotten_ || state == State::kPresent || state == State::kBusy)
    return false;
  there_ = memory.early_.try_emplace(number_, there_.size()).first->second; // a place for what it will be
  state = State::kBusy;
  ++memory.busy_;
  memory.touched_ += whom_ == For::kToucher ? 1 : 0;
  begun_ = true;
  return true;
}

AbsentMemory::Turn::~Turn() {
  if (!begun_)
    return;
  AbsentMemory& memory = memory_;
  {
    const std::lock_guard guard(memory.lock_);
    memory.states_[number_] = ends;
    --memory.busy_;
    if (ends == State::kPresent) {
      --memory.absent_;
      memory.early_.erase(number_);
    } else {
      memory.early_.find(number_)->second.swap(there_);
    }
    if (memory.absent_ == 0 && !memory.over_)
      memory.end_watch();
    memory.changed_.notify_all();
  }
  // Somebody may have touched a page of it meanwhile, and was left to us. He touches it again, and the thread that
  // serves touches brings it, or finds out for itself that it is bad, and says so.
  if (ends != State::kPresent && whom_ == For::kAsker)
    memory.userfault_.wake(block);
}

int AbsentMemory::Turn::put(size_t at, size_t bytes, const std::byte* content) {
  for (const size_t end = at + bytes; at < end;) {
    size_t filled = 0;
    const int refused = memory_.userfault_.fill(block.subspan(at, end - at), content + at, filled);
    for (const size_t until = at + filled; at < until; at += kPageBytes)
      there_[at / kPageBytes] = true;
    if (refused == 0)
      break;
    if (refused != EEXIST || !there_[at / kPageBytes])
      return refused;
    at += kPageBytes;
  }
  return 0;
}

std::expected<void, Error> AbsentMemory::bring_pages(size_t number, std::span<const uint64_t> offsets) {
  if (!has_small_pages() || origin_->is_zero(number * options_.block_bytes, block(number).size())) {
    Buffer buffer(0); // zeros need none
    return bring_block(number, buffer, nullptr);
  }
  Turn turn(*this, number, For::kAsker);
  if (!turn.begin())
    return {};
  auto done = fetch_pages(turn, offsets);
  if (done)
    turn.ends = State::kAbsent;
  return done;
}

// It is read into new pages of the kernel's, which are touched where the block has something: of a guest's first
// MiB that is a few.
std::expected<void, Error> AbsentMemory::fetch_pages(Turn& turn, std::span<const uint64_t> offsets) {
  const auto begin = static_cast<uint64_t>(turn.block.data() - memory_.data());
  auto room = SideBuffer::create(options_.operation, turn.block.size(), turn.block.size());
  if (!room)
    return std::unexpected(std::move(room.error()));
  const std::span content(room->at(room->take()), turn.block.size());
  if (auto read = origin_->read(begin, content, true); !read)
    return read;
  for (const uint64_t offset : offsets)
    if (const int refused = turn.put_page(offset - begin, content.data()))
      return std::unexpected(cannot_place(refused));
  return {};
}

std::expected<void, Error> AbsentMemory::bring_block(size_t number, Buffer& buffer, const std::byte* first) {
  Turn turn(*this, number, first != nullptr ? For::kToucher : For::kAsker);
  if (!turn.begin())
    return {};
  const bool zeros = origin_->is_zero(number * options_.block_bytes, turn.block.size()) && put_zeros(number);
  auto done = zeros ? std::expected<void, Error>() : fetch(turn, buffer, first);
  if (done)
    turn.ends = State::kPresent;
  return done;
}

std::expected<void, Error> AbsentMemory::fetch(Turn& turn, Buffer& buffer, const std::byte* first) {
  buffer.bytes.resize(options_.block_bytes);
  const std::span<std::byte> content = std::span(buffer.bytes).first(turn.block.size());
  const auto begin = static_cast<uint64_t>(turn.block.data() - memory_.data());
  auto done = origin_->read(begin, content, std::exchange(buffer.zeros, false));
  if (!done)
    return done;
  const int refused = first != nullptr && has_small_pages() ? place_in_pieces(turn, content.data(), first)
                                                            : turn.put(0, turn.block.size(), content.data());
  if (refused != 0)
    return std::unexpected(cannot_place(refused));
  return {};
}

// Where the kernel does not watch any more it gives zeros by itself, in huge pages if it likes.
bool AbsentMemory::put_zeros(size_t number) {
  const bool release = may_release(number) && [&] {
    const std::lock_guard guard(lock_);
    return claim_release(number);
  }();
  if (release && userfault_.release(block(number)) == 0)
    return true;
  return userfault_.fill_with_zeros(block(number)) == 0;
}

// What comes with a huge page of a file must be zeros as well.
bool AbsentMemory::may_release(size_t number) const {
  if (!options_.is_file || !has_small_pages())
    return true;
  const uint64_t begin = number * options_.block_bytes / kHugePageBytes * kHugePageBytes;
  return begin + kHugePageBytes <= memory_.size() && origin_->is_zero(begin, kHugePageBytes);
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
// of the block meanwhile, which a guest that has just begun does, waits for a piece and not for all. CONTEXT: the
// serving thread; small pages.
int AbsentMemory::place_in_pieces(Turn& turn, const std::byte* content, const std::byte* first) {
  const auto begin = static_cast<size_t>(first - turn.block.data()) / kPageBytes * kPageBytes;
  if (const int refused = turn.put_page(begin, content))
    return refused;
  // What follows is likelier to be wanted next than what is before.
  for (const auto& [from, to] : {std::pair(begin + kPageBytes, turn.block.size()), std::pair(size_t{0}, begin)})
    for (size_t at = from; at < to;) {
      const size_t bytes = std::min(kPiece, to - at);
      if (const int refused = place_touched(turn, content))
        return refused;
      if (const int refused = turn.put(at, bytes, content))
        return refused;
      at += bytes;
    }
  return 0;
}

// Touches elsewhere are left for later. A page may be there already: who touches it as it is placed is told of, and
// does not wait. CONTEXT: the serving thread.
int AbsentMemory::place_touched(Turn& turn, const std::byte* content) {
  if (const int failed = hear_touches())
    return failed;
  for (auto touch = touches_.begin(); touch != touches_.end();) {
    if (*touch < turn.block.data() || *touch >= turn.block.data() + turn.block.size()) {
      ++touch;
      continue;
    }
    if (const int refused = turn.put_page(static_cast<size_t>(*touch - turn.block.data()), content))
      return refused;
    touch = touches_.erase(touch);
  }
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
