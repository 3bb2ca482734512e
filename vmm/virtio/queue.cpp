// SPDX-License-Identifier: Apache-2.0
// What passes between driver and device through a queue, and in which order.
//
//   driver                                     device
//   ------                                     ------
//   A  writes descriptors, ring entry
//      idx := n (release)            -- VQ1 --> acquires idx, reads the entry and its descriptors
//                                               does the request
//                                               writes the used entry
//   reads the used entry             <-- VQ2 -- idx := m (release)
//
// Notices go wrong where each side looks before it sees what the other has just said. Both therefore write, then
// look, with a full barrier between, so that one of them sees the other at least:
//
//   idx := n; barrier; does the device want a notice?        (VQ3)       "I want one": barrier; is there a chain?
//   "I want an interrupt": barrier; is there a used entry?   (VQ4)       idx := m; barrier; does the driver want
//   one?
//
// The barriers of the driver are its own affair (virtio 1.2, 2.7.13.4.1, 2.7.14); ours are a seq_cst exchange and a
// seq_cst load after it, as a fence by itself would not be seen by thread sanitizers.
#include "vmm/virtio/queue.h"

#include <atomic>
#include <bit>
#include <utility>

namespace stopvisor::vmm::virtio {
namespace {

static_assert(std::endian::native == std::endian::little, "the ring is little-endian: virtio 1.2, 1.4");

// virtio 1.2, 2.7.5: the descriptor's flags
constexpr uint16_t kNext = 1;
constexpr uint16_t kWrite = 2;
constexpr uint16_t kIndirect = 4;
constexpr uint64_t kDescriptorBytes = 16;
// 2.7.6 and 2.7.8: both rings begin with flags and idx; entries follow, then the other side's event index.
constexpr uint64_t kIndexAt = 2;
constexpr uint64_t kRingAt = 4;
constexpr uint16_t kNoInterrupt = 1; // in the available ring's flags
constexpr uint16_t kNoNotify = 1;    // in the used ring's flags
constexpr uint64_t kUsedBytes = 8;
// 2.7: alignment of the three areas
constexpr uint64_t kDescriptorAlign = 16, kAvailableAlign = 2, kUsedAlign = 4;
// 2.7.5: a chain longer than this would be a loop.
constexpr uint64_t kMaxChainBytes = uint64_t{1} << 32;

template <class Word>
std::atomic_ref<Word> word(std::span<std::byte> area, uint64_t at) noexcept {
  return std::atomic_ref<Word>(
      *reinterpret_cast<Word*>(area.data() + at)); // aligned: start() has checked the areas
}

} // namespace

bool Queue::fail(const char* why) noexcept {
  broken_ = why;
  return false;
}

void Queue::start(const Layout& layout) noexcept {
  stop();
  layout_ = layout;
  if (layout.size == 0 || layout.size > kMaxQueueSize || !std::has_single_bit(layout.size))
    return static_cast<void>(fail("a queue of a size that the device does not have"));
  if (layout.descriptors % kDescriptorAlign != 0 || layout.available % kAvailableAlign != 0 ||
      layout.used % kUsedAlign != 0)
    return static_cast<void>(fail("a queue that is not aligned"));
  // The event indices are counted in also where they are not used: the driver has to leave room for them.
  descriptors_ = memory_.range(Gpa{layout.descriptors}, kDescriptorBytes * layout.size);
  available_ = memory_.range(Gpa{layout.available}, kRingAt + 2 * (uint64_t{layout.size} + 1));
  used_ = memory_.range(Gpa{layout.used}, kRingAt + kUsedBytes * layout.size + 2);
  if (descriptors_.empty() || available_.empty() || used_.empty())
    return static_cast<void>(fail("a queue outside of guest memory"));
  started_ = true;
}

void Queue::stop() noexcept {
  started_ = false;
  broken_ = nullptr;
  layout_ = {};
  descriptors_ = available_ = used_ = {};
  next_available_ = next_used_ = published_ = 0;
  notices_off_ = interrupt_due_ = false;
}

void Queue::go_on_from(const Position& position) noexcept {
  next_available_ = position.next_available;
  next_used_ = published_ = position.next_used;
  notices_off_ = position.notices_off;
  if (position.broken && broken_ == nullptr)
    broken_ = "the driver broke it before the machine was saved";
}

// Each word is loaded once: a compiler may not load an atomic twice.
Queue::Descriptor Queue::copy(Table table, uint16_t index) noexcept {
  const uint64_t at = kDescriptorBytes * index;
  // relaxed: ordered by VQ1
  Descriptor descriptor{};
  descriptor.address = word<uint64_t>(table, at).load(std::memory_order_relaxed);
  const uint64_t rest = word<uint64_t>(table, at + 8).load(std::memory_order_relaxed);
  descriptor.length = static_cast<uint32_t>(rest);
  descriptor.flags = static_cast<uint16_t>(rest >> 32);
  descriptor.next = static_cast<uint16_t>(rest >> 48);
  return descriptor;
}

bool Queue::next(Chain& chain) noexcept {
  if (!started_ || broken_ != nullptr)
    return false;
  const uint16_t index = word<uint16_t>(available_, kIndexAt).load(std::memory_order_acquire); // VQ1
  const auto waiting = static_cast<uint16_t>(index - next_available_);
  if (waiting == 0)
    return false;
  if (waiting > size())
    return fail("an available index that is further ahead than the queue is long");
  const uint64_t place = kRingAt + 2 * uint64_t{next_available_} % (2 * uint64_t{size()});
  const uint16_t head = word<uint16_t>(available_, place).load(std::memory_order_relaxed); // ordered by VQ1
  if (head >= size())
    return fail("a chain that begins outside of the table");
  chain.head_ = head;
  if (!collect(chain))
    return false;
  ++next_available_;
  if (!layout_.event_index && !notices_off_) { // a wish: relaxed
    word<uint16_t>(used_, 0).store(kNoNotify, std::memory_order_relaxed);
    note_used(0, sizeof(uint16_t));
    notices_off_ = true;
  }
  return true;
}

bool Queue::collect(Chain& chain) noexcept {
  chain.readable_ = chain.count_ = 0;
  chain.readable_bytes_ = chain.writable_bytes_ = 0;
  Table table = descriptors_;
  auto places = size();
  uint16_t index = chain.head_;
  bool inside = false; // an indirect table: not told by its address, which may be that of the queue's own
  // As many as the queue has places, those of an indirect table included (2.7.5.3.1): a longer chain is a loop.
  for (uint32_t turn = 0; turn < size();) {
    const Descriptor descriptor = copy(table, index);
    if ((descriptor.flags & kIndirect) != 0) {
      if (std::exchange(inside, true))
        return fail("an indirect table in an indirect table");
      if (!enter_indirect(descriptor, table))
        return false;
      places = static_cast<uint16_t>(table.size() / kDescriptorBytes);
      index = 0;
      continue; // once at most
    }
    if (!add(chain, descriptor))
      return false;
    if ((descriptor.flags & kNext) == 0)
      return true;
    index = descriptor.next;
    if (index >= places)
      return fail("a chain that leaves its table");
    ++turn;
  }
  return fail("a chain that is longer than its queue");
}

bool Queue::enter_indirect(const Descriptor& descriptor, Table& table) noexcept {
  if (!layout_.indirect)
    return fail("an indirect table that was not agreed on");
  if ((descriptor.flags & kNext) != 0)
    return fail("an indirect table with a descriptor after it");
  if (descriptor.length == 0 || descriptor.length % kDescriptorBytes != 0)
    return fail("an indirect table of odd size");
  if (descriptor.length / kDescriptorBytes > size())
    return fail("an indirect table that is longer than its queue");
  if (descriptor.address % alignof(uint64_t) != 0)
    return fail("an indirect table that is not aligned");
  table = memory_.range(Gpa{descriptor.address}, descriptor.length);
  return !table.empty() || fail("an indirect table outside of guest memory");
}

bool Queue::add(Chain& chain, const Descriptor& descriptor) noexcept {
  const bool writable = (descriptor.flags & kWrite) != 0;
  if (!writable && chain.count_ != chain.readable_)
    return fail("a readable buffer after a writable one");
  if (descriptor.length == 0) // nothing forbids it
    return true;
  const auto buffer = memory_.range(Gpa{descriptor.address}, descriptor.length);
  if (buffer.empty())
    return fail("a buffer outside of guest memory");
  chain.buffers_[chain.count_++] = {buffer.data(), buffer.size()};
  if (!writable)
    chain.readable_ = chain.count_;
  (writable ? chain.writable_bytes_ : chain.readable_bytes_) += buffer.size();
  if (chain.readable_bytes_ + chain.writable_bytes_ > kMaxChainBytes)
    return fail("a chain of more than 4 GiB");
  return true;
}

void Queue::give_back(uint16_t chains) noexcept {
  next_available_ = static_cast<uint16_t>(next_available_ - chains);
}

void Queue::put(const Chain& chain, uint32_t written) noexcept {
  for (const iovec& buffer : chain.writable()) // whatever becomes of the queue
    written_.note_data({static_cast<const std::byte*>(buffer.iov_base), buffer.iov_len});
  if (!started_ || broken_ != nullptr)
    return;
  const uint64_t place = kRingAt + kUsedBytes * (next_used_ % size());
  // relaxed: ordered by VQ2
  word<uint32_t>(used_, place).store(chain.head_, std::memory_order_relaxed);
  word<uint32_t>(used_, place + 4).store(written, std::memory_order_relaxed);
  note_used(place, kUsedBytes);
  ++next_used_;
}

void Queue::publish() noexcept {
  if (!started_ || broken_ != nullptr || published_ == next_used_)
    return;
  const uint16_t before = published_;
  published_ = next_used_;
  word<uint16_t>(used_, kIndexAt).exchange(published_, std::memory_order_seq_cst); // VQ2, VQ4
  note_used(kIndexAt, sizeof(uint16_t));
  interrupt_due_ |= wants_interrupt(before, published_);
  chains_done_.fetch_add(static_cast<uint16_t>(published_ - before),
                         std::memory_order_relaxed); // a counter by itself
}

bool Queue::wants_interrupt(uint16_t before, uint16_t after) noexcept {
  if (!layout_.event_index)
    return (word<uint16_t>(available_, 0).load(std::memory_order_seq_cst) & kNoInterrupt) == 0; // VQ4
  const uint64_t at = kRingAt + 2 * uint64_t{size()};
  const uint16_t event = word<uint16_t>(available_, at).load(std::memory_order_seq_cst); // VQ4
  // Whether `event` is one of [before, after), on a circle of 2^16: 2.7.10.
  return static_cast<uint16_t>(after - event - 1) < static_cast<uint16_t>(after - before);
}

bool Queue::ask_for_notice() noexcept {
  if (!started_ || broken_ != nullptr)
    return false;
  if (layout_.event_index) {
    const uint64_t at = kRingAt + kUsedBytes * size();
    word<uint16_t>(used_, at).exchange(next_available_, std::memory_order_seq_cst); // VQ3
    note_used(at, sizeof(uint16_t));
  } else if (notices_off_) {
    word<uint16_t>(used_, 0).exchange(0, std::memory_order_seq_cst); // VQ3
    note_used(0, sizeof(uint16_t));
    notices_off_ = false;
  }
  return word<uint16_t>(available_, kIndexAt).load(std::memory_order_seq_cst) != next_available_; // VQ3
}

} // namespace stopvisor::vmm::virtio
