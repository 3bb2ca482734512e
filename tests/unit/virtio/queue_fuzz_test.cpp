// SPDX-License-Identifier: Apache-2.0
// Random rings, from a fixed seed: whatever stands in them, a chain lies in guest memory and is no longer than its
// queue, and a queue is either served or broken, in bounded time.
//
// Random numbers alone would be refused by the first check. So most words are nearly right: small indices,
// addresses in and around memory, flags that mean something.
#include "vmm/virtio/queue.h"

#include <random>

#include <gtest/gtest.h>

#include "tests/unit/virtio/raw_ring.h"

namespace stopvisor::vmm::virtio {
namespace {

using testing::RawDescriptor;
using testing::RawRing;

constexpr uint64_t kMemoryBytes = 1 << 16;
constexpr int kRounds = 60'000;

class RandomRing {
public:
  explicit RandomRing(uint32_t seed) : random_(seed) {}

  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }
  bool rarely() { return below(8) == 0; }

  uint64_t address() {
    switch (below(8)) {
    case 0:
      return random_();
    case 1:
      return kMemoryBytes - below(64);
    case 2:
      return uint64_t{below(256)} * 16; // often the rings themselves
    default:
      return below(kMemoryBytes) & ~uint64_t{15};
    }
  }
  uint32_t length() {
    switch (below(8)) {
    case 0:
      return static_cast<uint32_t>(random_());
    case 1:
      return 0;
    case 2:
      return 16 * below(20);
    default:
      return below(512);
    }
  }
  RawDescriptor descriptor(uint16_t size) {
    const auto flags = static_cast<uint16_t>(rarely() ? random_() : below(8));
    return {address(), length(), flags, static_cast<uint16_t>(rarely() ? random_() : below(size + 1U))};
  }

private:
  std::mt19937_64 random_;
};

bool inside(const GuestMemory& memory, const iovec& buffer) {
  const auto all = memory.range(Gpa{0}, kMemoryBytes);
  const auto* const start = static_cast<const std::byte*>(buffer.iov_base);
  return buffer.iov_len != 0 && start >= all.data() && buffer.iov_len <= all.size() &&
         start - all.data() <= static_cast<ptrdiff_t>(all.size() - buffer.iov_len);
}

TEST(QueueFuzz, GivesChainsInMemoryOrIsBroken) {
  const GuestMemory memory = *GuestMemory::create(kMemoryBytes, MemoryBacking::kAnonymous);
  RandomRing random(20'261'123);
  WrittenPages written(memory.slots());
  Queue queue(memory, written);
  Chain chain;
  uint64_t chains = 0;
  uint64_t broken = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto size = static_cast<uint16_t>(1U << random.below(9));
    RawRing ring(memory, size);
    Queue::Layout layout = ring.layout();
    if (random.rarely())
      layout.used = random.address();
    if (random.rarely())
      layout.descriptors = random.address();
    layout.indirect = random.below(4) != 0;
    layout.event_index = random.below(2) == 0;
    queue.start(layout);
    for (uint16_t index = 0; index < size && index < 24; ++index)
      ring.describe(index, random.descriptor(size < 24 ? size : 24));
    for (uint64_t at = 0x8000; at < 0x8200; at += 16) // tables to point to
      ring.describe_at(at, random.descriptor(16));
    ring.set_available_index(0);
    for (uint32_t offers = random.below(6); offers != 0; --offers)
      ring.offer(static_cast<uint16_t>(random.rarely() ? random.below(65'536) : random.below(size)));
    if (random.rarely())
      ring.set_available_index(static_cast<uint16_t>(random.below(65'536)));
    for (int turn = 0; turn < 8 && queue.next(chain); ++turn) {
      ++chains;
      ASSERT_LE(chain.readable().size() + chain.writable().size(), size);
      uint64_t bytes = 0;
      for (const auto buffers : {chain.readable(), chain.writable()})
        for (const iovec& buffer : buffers) {
          ASSERT_TRUE(inside(memory, buffer)) << "round " << round;
          bytes += buffer.iov_len;
        }
      ASSERT_EQ(bytes, chain.readable_bytes() + chain.writable_bytes());
      if (random.rarely())
        queue.give_back();
      else
        queue.put(chain, static_cast<uint32_t>(bytes));
      queue.publish();
      (void)queue.ask_for_notice();
    }
    broken += queue.broken() != nullptr ? 1U : 0U;
    ASSERT_FALSE(queue.broken() != nullptr && queue.next(chain));
  }
  // It is not all one or the other.
  EXPECT_GT(chains, kRounds / 4U);
  EXPECT_GT(broken, kRounds / 4U);
  EXPECT_LT(broken, kRounds);
}

} // namespace
} // namespace stopvisor::vmm::virtio
