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

namespace stopvisor::vmm {
namespace {

constexpr size_t kMostAtOnce = 16;
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

std::expected<void, Error> AbsentMemory::bring(uint64_t offset) {
  Buffer buffer;
  return bring_block(offset / options_.block_bytes, buffer, nullptr);
}

std::expected<void, Error> AbsentMemory::bring_all(std::stop_token stop, Progress* progress) {
  if (progress != nullptr)
    progress->total_bytes.store(memory_.size(), std::memory_order_relaxed);
  Buffer buffer;
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

std::expected<void, Error> AbsentMemory::bring_block(size_t number, Buffer& buffer, const std::byte* first) {
  {
    std::unique_lock lock(lock_);
    if (first == nullptr) // who was told of a touch has better things to do: whoever is busy wakes its toucher
      changed_.wait(lock, [&] { return states_[number] != State::kBusy; });
    if (over_ || forgotten_ || states_[number] == State::kPresent || states_[number] == State::kBusy)
      return {};
    states_[number] = State::kBusy;
    ++busy_;
    touched_ += first != nullptr ? 1 : 0;
  }
  auto done = fetch(number, buffer, first);
  {
    const std::lock_guard guard(lock_);
    states_[number] = done ? State::kPresent : State::kBad;
    --busy_;
    absent_ -= done ? 1 : 0;
    if (absent_ == 0 && !over_)
      end_watch();
    changed_.notify_all();
  }
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
  buffer.resize(options_.block_bytes);
  const std::span<std::byte> content = std::span(buffer).first(to.size());
  auto done = origin_->read(offset, content);
  if (!done)
    return done;
  if (const int refused = place(to, content.data(), first))
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

// RETURNS: 0 or an errno value.
int AbsentMemory::place(std::span<std::byte> block, const std::byte* content,
                        const std::byte* first) const noexcept {
  size_t begin = 0;
  size_t end = 0;
  if (first != nullptr && options_.block_bytes <= (1U << 20)) {
    begin = static_cast<size_t>(first - block.data()) / kPageBytes * kPageBytes;
    end = begin + kPageBytes;
    if (const int refused = userfault_.fill(block.subspan(begin, kPageBytes), content + begin))
      return refused;
  }
  if (end < block.size()) // what follows is likelier to be wanted next than what is before
    if (const int refused = userfault_.fill(block.subspan(end), content + end))
      return refused;
  return begin == 0 ? 0 : userfault_.fill(block.first(begin), content);
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
      (void)::poll(sources.data(), sources.size(), -1);
      std::array<const std::byte*, kMostAtOnce> addresses{};
      const int count = userfault_.next(addresses);
      if (count < 0)
        throw std::system_error(-count, std::generic_category(), "cannot learn who waits");
      for (const std::byte* const address : std::span(addresses).first(static_cast<size_t>(count))) {
        const auto number = static_cast<size_t>(address - memory_.data()) / options_.block_bytes;
        if (auto done = bring_block(number, buffer, address); !done)
          fail(done.error());
      }
    }
  } catch (const std::exception& failure) { // nor memory to read into
    fail(error(failure.what()));
  }
}

} // namespace stopvisor::vmm
