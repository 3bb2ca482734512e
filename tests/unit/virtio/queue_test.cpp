// SPDX-License-Identifier: Apache-2.0
// A queue gives the device what the driver put there, and is broken by whatever cannot be true.
#include "vmm/virtio/queue.h"

#include <optional>
#include <string>

#include <gtest/gtest.h>

#include "tests/unit/virtio/raw_ring.h"

namespace stopvisor::vmm::virtio {
namespace {

using testing::kIndirect;
using testing::kNext;
using testing::kWrite;
using testing::RawDescriptor;
using testing::RawRing;

constexpr uint64_t kMemoryBytes = 1 << 20;
constexpr uint16_t kSize = 8;
constexpr uint64_t kBuffer = 0x1'0000; // buffers are put here
constexpr uint64_t kTable = 0x8'0000;  // an indirect table

class QueueTest : public ::testing::Test {
protected:
  void start(bool indirect = false, bool event_index = false) {
    Queue::Layout layout = ring.layout();
    layout.indirect = indirect;
    layout.event_index = event_index;
    queue.start(layout);
    ASSERT_EQ(queue.broken(), nullptr);
  }
  // Offers what begins at descriptor 0. RETURNS: why the queue is broken then; "" where there was a chain.
  std::string broken_by_chain_at_0() {
    ring.offer(0);
    const bool taken = queue.next(chain);
    EXPECT_EQ(taken, queue.broken() == nullptr);
    EXPECT_FALSE(queue.broken() != nullptr && queue.next(chain)); // and stays so
    return queue.broken() != nullptr ? queue.broken() : "";
  }
  void serve_one() {
    ASSERT_TRUE(queue.next(chain));
    queue.put(chain, 0);
    queue.publish();
  }

  GuestMemory memory = *GuestMemory::create(kMemoryBytes, MemoryBacking::kAnonymous);
  RawRing ring{memory, kSize};
  WrittenPages written{memory.slots()};
  Queue queue{memory, written};
  Chain chain;
};

TEST_F(QueueTest, GivesTheBuffersOfAChainInTheirOrder) {
  start();
  ring.describe(3, {kBuffer, 4, kNext, 1});
  ring.describe(1, {kBuffer + 0x100, 2, kNext, 7});
  ring.describe(7, {kBuffer + 0x200, 8, kNext | kWrite, 0});
  ring.describe(0, {kBuffer + 0x300, 1, kWrite, 0});
  ring.put_text(kBuffer, "abcd");
  ring.put_text(kBuffer + 0x100, "ef");
  ring.offer(3);
  ASSERT_TRUE(queue.next(chain));
  EXPECT_EQ(chain.head(), 3);
  EXPECT_EQ(chain.readable().size(), 2U);
  EXPECT_EQ(chain.writable().size(), 2U);
  EXPECT_EQ(chain.readable_bytes(), 6U);
  EXPECT_EQ(chain.writable_bytes(), 9U);
  std::string read(3, '\0');
  EXPECT_TRUE(chain.read(2, std::as_writable_bytes(std::span(read))));
  EXPECT_EQ(read, "cde");
  EXPECT_FALSE(chain.read(4, std::as_writable_bytes(std::span(read)))); // one byte more than there is
  EXPECT_TRUE(chain.write(7, std::as_bytes(std::span(std::string_view("xy")))));
  EXPECT_EQ(ring.text(kBuffer + 0x207, 1) + ring.text(kBuffer + 0x300, 1), "xy");
  EXPECT_FALSE(chain.write(8, std::as_bytes(std::span(std::string_view("xy")))));
  EXPECT_FALSE(queue.next(chain));
  queue.put(chain, 9);
  EXPECT_EQ(ring.used_index(), 0); // not before it is published
  queue.publish();
  EXPECT_EQ(ring.used_index(), 1);
  EXPECT_EQ(ring.used(0), (RawRing::Used{3, 9}));
  EXPECT_TRUE(queue.take_interrupt());
  EXPECT_FALSE(queue.take_interrupt());
  EXPECT_EQ(queue.chains_done(), 1U);
}

TEST_F(QueueTest, GoesRoundAndRoundItsRing) {
  start();
  ring.describe(5, {kBuffer, 4, kWrite, 0});
  for (uint32_t turn = 0; turn < 70'000; ++turn) { // past the 16 bits of the index
    ring.offer(5);
    ASSERT_TRUE(queue.next(chain));
    queue.put(chain, turn);
    queue.publish();
    ASSERT_EQ(ring.used_index(), static_cast<uint16_t>(turn + 1));
    ASSERT_EQ(ring.used(static_cast<uint16_t>(turn)), (RawRing::Used{5, turn}));
  }
}

TEST_F(QueueTest, GivesAgainWhatWasGivenBack) {
  start();
  ring.describe(0, {kBuffer, 1, 0, 0});
  ring.describe(1, {kBuffer, 2, 0, 0});
  ring.offer(0);
  ring.offer(1);
  ASSERT_TRUE(queue.next(chain));
  ASSERT_TRUE(queue.next(chain));
  queue.give_back(2);
  ASSERT_TRUE(queue.next(chain));
  EXPECT_EQ(chain.head(), 0);
}

TEST_F(QueueTest, TakesABufferOfNoBytesForNothing) {
  start();
  ring.describe(0, {~uint64_t{0}, 0, kNext, 1}); // wherever it lies
  ring.describe(1, {kBuffer, 4, kWrite, 0});
  ring.offer(0);
  ASSERT_TRUE(queue.next(chain));
  EXPECT_TRUE(chain.readable().empty());
  EXPECT_EQ(chain.writable().size(), 1U);
}

TEST_F(QueueTest, ReadsAnIndirectTableBehindItsOwnDescriptors) {
  start(true);
  ring.describe(0, {kBuffer, 4, kNext, 1});
  ring.describe(1, {kTable, 3 * 16, kIndirect | kWrite, 0}); // WRITE there means nothing: 2.7.5.3.2
  ring.describe_at(kTable, {kBuffer + 4, 4, kNext, 2});
  ring.describe_at(kTable + 32, {kBuffer + 8, 4, kWrite, 0});
  ring.offer(0);
  ASSERT_TRUE(queue.next(chain)) << queue.broken();
  EXPECT_EQ(chain.readable_bytes(), 8U);
  EXPECT_EQ(chain.writable_bytes(), 4U);
}

// ---- what cannot be true ------------------------------------------------------------------------------------

TEST_F(QueueTest, IsBrokenByALoop) {
  start();
  ring.describe(0, {kBuffer, 4, kNext, 1});
  ring.describe(1, {kBuffer, 4, kNext, 0});
  EXPECT_EQ(broken_by_chain_at_0(), "a chain that is longer than its queue");
}

TEST_F(QueueTest, IsBrokenByALoopOfEmptyBuffers) {
  start();
  ring.describe(0, {kBuffer, 0, kNext, 0});
  EXPECT_EQ(broken_by_chain_at_0(), "a chain that is longer than its queue");
}

TEST_F(QueueTest, TakesAChainAsLongAsItself) {
  start();
  for (uint16_t index = 0; index < kSize; ++index)
    ring.describe(index, {kBuffer, 4, index + 1 < kSize ? kNext : uint16_t{0}, static_cast<uint16_t>(index + 1)});
  EXPECT_EQ(broken_by_chain_at_0(), "");
  EXPECT_EQ(chain.readable().size(), kSize);
}

TEST_F(QueueTest, IsBrokenByABufferOutsideOfMemory) {
  for (const RawDescriptor& wrong : {RawDescriptor{kMemoryBytes, 1, 0, 0}, RawDescriptor{kMemoryBytes - 1, 2, 0, 0},
                                     RawDescriptor{~uint64_t{0}, 1, 0, 0}, RawDescriptor{~uint64_t{0} - 3, 8, 0, 0},
                                     RawDescriptor{0, UINT32_MAX, 0, 0}, RawDescriptor{kHoleStart, 4, kWrite, 0}}) {
    start();
    ring.set_available_index(0);
    ring.describe(0, wrong);
    EXPECT_EQ(broken_by_chain_at_0(), "a buffer outside of guest memory") << wrong.address;
  }
}

TEST(LargeQueue, IsBrokenByAChainOfMoreThan4GiB) {
  const GuestMemory memory = *GuestMemory::create(64 << 20, MemoryBacking::kAnonymous);
  RawRing ring(memory, 128);
  WrittenPages written(memory.slots());
  Queue queue(memory, written);
  Chain chain;
  for (const uint32_t last : {0U, 1U}) { // 64 times 64 MiB is just right
    queue.start(ring.layout());
    ring.set_available_index(0);
    for (uint16_t index = 0; index < 64; ++index)
      ring.describe(index, {0, 64 << 20, kNext, static_cast<uint16_t>(index + 1)});
    ring.describe(64, {0, last, 0, 0});
    ring.offer(0);
    EXPECT_EQ(queue.next(chain), last == 0);
    EXPECT_STREQ(queue.broken(), last == 0 ? nullptr : "a chain of more than 4 GiB");
  }
}

TEST_F(QueueTest, IsBrokenByAReadableBufferAfterAWritableOne) {
  start();
  ring.describe(0, {kBuffer, 4, kNext | kWrite, 1});
  ring.describe(1, {kBuffer, 4, 0, 0});
  EXPECT_EQ(broken_by_chain_at_0(), "a readable buffer after a writable one");
}

TEST_F(QueueTest, IsBrokenByAChainThatLeavesTheTable) {
  start();
  ring.describe(0, {kBuffer, 4, kNext, kSize});
  EXPECT_EQ(broken_by_chain_at_0(), "a chain that leaves its table");
}

TEST_F(QueueTest, IsBrokenByAChainThatBeginsOutsideOfTheTable) {
  start();
  ring.offer(kSize);
  EXPECT_FALSE(queue.next(chain));
  EXPECT_STREQ(queue.broken(), "a chain that begins outside of the table");
}

TEST_F(QueueTest, IsBrokenByAnIndexThatJumps) {
  start();
  ring.set_available_index(kSize + 1);
  EXPECT_FALSE(queue.next(chain));
  EXPECT_STREQ(queue.broken(), "an available index that is further ahead than the queue is long");
}

TEST_F(QueueTest, IsBrokenByAnIndexThatGoesBack) {
  start();
  ring.describe(0, {kBuffer, 4, 0, 0});
  ring.offer(0);
  serve_one();
  ring.set_available_index(0);
  EXPECT_FALSE(queue.next(chain));
  EXPECT_STREQ(queue.broken(), "an available index that is further ahead than the queue is long");
}

TEST_F(QueueTest, IsBrokenByAnIndirectTableThatWasNotAgreedOn) {
  start(false);
  ring.describe(0, {kTable, 16, kIndirect, 0});
  EXPECT_EQ(broken_by_chain_at_0(), "an indirect table that was not agreed on");
}

TEST_F(QueueTest, IsBrokenByAnIndirectTableOfOddSize) {
  for (const uint32_t bytes : {0U, 8U, 17U, 16U * kSize - 1}) {
    start(true);
    ring.set_available_index(0);
    ring.describe(0, {kTable, bytes, kIndirect, 0});
    EXPECT_EQ(broken_by_chain_at_0(), "an indirect table of odd size") << bytes;
  }
}

TEST_F(QueueTest, IsBrokenByAnIndirectTableThatIsTooLong) {
  for (const uint32_t bytes : {16U * (kSize + 1), 0xffff'fff0U}) {
    start(true);
    ring.set_available_index(0);
    ring.describe(0, {kTable, bytes, kIndirect, 0});
    EXPECT_EQ(broken_by_chain_at_0(), "an indirect table that is longer than its queue");
  }
}

TEST_F(QueueTest, IsBrokenByAnIndirectTableOutsideOfMemory) {
  for (const uint64_t address : {kMemoryBytes - 16, ~uint64_t{0} - 15, kHoleStart}) {
    start(true);
    ring.set_available_index(0);
    ring.describe(0, {address, 32, kIndirect, 0});
    EXPECT_EQ(broken_by_chain_at_0(), "an indirect table outside of guest memory");
  }
}

TEST_F(QueueTest, IsBrokenByAnIndirectTableThatIsNotAligned) {
  start(true);
  ring.describe(0, {kTable + 4, 32, kIndirect, 0});
  EXPECT_EQ(broken_by_chain_at_0(), "an indirect table that is not aligned");
}

TEST_F(QueueTest, IsBrokenByAnIndirectTableInAnother) {
  start(true);
  ring.describe(0, {kTable, 16, kIndirect, 0});
  ring.describe_at(kTable, {kTable + 0x100, 16, kIndirect, 0});
  ring.describe_at(kTable + 0x100, {kBuffer, 4, 0, 0});
  EXPECT_EQ(broken_by_chain_at_0(), "an indirect table in an indirect table");
}

// Told by the table's address alone, this would go on for ever.
TEST_F(QueueTest, IsBrokenByAnIndirectTableThatIsTheQueuesOwn) {
  start(true);
  ring.describe(0, {RawRing::kDescriptors, 16 * kSize, kIndirect, 0});
  EXPECT_EQ(broken_by_chain_at_0(), "an indirect table in an indirect table");
}

TEST_F(QueueTest, IsBrokenByADescriptorAfterAnIndirectTable) {
  start(true);
  ring.describe(0, {kTable, 16, kIndirect | kNext, 1});
  EXPECT_EQ(broken_by_chain_at_0(), "an indirect table with a descriptor after it");
}

TEST_F(QueueTest, IsBrokenByALoopInAnIndirectTable) {
  start(true);
  ring.describe(0, {kTable, 32, kIndirect, 0});
  ring.describe_at(kTable, {kBuffer, 4, kNext, 1});
  ring.describe_at(kTable + 16, {kBuffer, 4, kNext, 0});
  EXPECT_EQ(broken_by_chain_at_0(), "a chain that is longer than its queue");
}

TEST_F(QueueTest, IsBrokenByAChainThatLeavesItsIndirectTable) {
  start(true);
  ring.describe(0, {kTable, 32, kIndirect, 0});
  ring.describe_at(kTable, {kBuffer, 4, kNext, 2}); // within the queue's size, not the table's
  EXPECT_EQ(broken_by_chain_at_0(), "a chain that leaves its table");
}

TEST_F(QueueTest, DoesNotStartWhereItCannotBe) {
  struct Case {
    uint16_t size;
    uint64_t descriptors, available, used;
    const char* why;
  };
  constexpr uint64_t kD = RawRing::kDescriptors, kA = RawRing::kAvailable, kU = RawRing::kUsed;
  constexpr const char* kWrongSize = "a queue of a size that the device does not have";
  constexpr const char* kOdd = "a queue that is not aligned";
  constexpr const char* kOutside = "a queue outside of guest memory";
  for (const Case& wrong : {
           Case{0, kD, kA, kU, kWrongSize},
           Case{6, kD, kA, kU, kWrongSize},
           Case{512, kD, kA, kU, kWrongSize},
           Case{8, kD + 8, kA, kU, kOdd},
           Case{8, kD, kA + 1, kU, kOdd},
           Case{8, kD, kA, kU + 2, kOdd},
           Case{8, kMemoryBytes - 16, kA, kU, kOutside},
           Case{8, kD, kMemoryBytes - 20, kU, kOutside}, // its event index would not fit
           Case{8, kD, kA, kMemoryBytes - 68, kOutside},
           Case{8, ~uint64_t{15}, kA, kU, kOutside},
           Case{8, kD, kA, kHoleStart, kOutside},
       }) {
    Queue::Layout layout;
    layout.size = wrong.size;
    layout.descriptors = wrong.descriptors;
    layout.available = wrong.available;
    layout.used = wrong.used;
    queue.start(layout);
    EXPECT_FALSE(queue.started());
    EXPECT_STREQ(queue.broken(), wrong.why);
    EXPECT_FALSE(queue.next(chain));
    EXPECT_FALSE(queue.ask_for_notice());
    queue.put(chain, 1); // goes nowhere
    queue.publish();
    queue.stop();
    EXPECT_EQ(queue.broken(), nullptr);
  }
}

// ---- notices and interrupts -------------------------------------------------------------------------------

TEST_F(QueueTest, TurnsNoticesOffWhileItIsBusyAndOnBeforeItRests) {
  start();
  ring.describe(0, {kBuffer, 4, 0, 0});
  EXPECT_FALSE(queue.ask_for_notice());
  EXPECT_EQ(ring.used_flags(), 0);
  ring.offer(0);
  EXPECT_TRUE(queue.ask_for_notice()); // it is there already
  serve_one();
  EXPECT_EQ(ring.used_flags(), 1);
  EXPECT_FALSE(queue.ask_for_notice());
  EXPECT_EQ(ring.used_flags(), 0);
}

TEST_F(QueueTest, AsksForTheNextChainByItsIndex) {
  start(false, true);
  ring.describe(0, {kBuffer, 4, 0, 0});
  for (uint16_t turn = 0; turn < 20; ++turn) {
    EXPECT_FALSE(queue.ask_for_notice());
    EXPECT_EQ(ring.available_event(), turn);
    ring.offer(0);
    EXPECT_TRUE(queue.ask_for_notice());
    serve_one();
    EXPECT_EQ(ring.used_flags(), 0); // not used then
  }
}

TEST_F(QueueTest, KeepsFromInterruptingADriverThatDoesNotWantIt) {
  start();
  ring.describe(0, {kBuffer, 4, 0, 0});
  ring.set_available_flags(1);
  ring.offer(0);
  serve_one();
  EXPECT_FALSE(queue.take_interrupt());
  ring.set_available_flags(0);
  ring.offer(0);
  serve_one();
  EXPECT_TRUE(queue.take_interrupt());
}

TEST_F(QueueTest, InterruptsWhenTheUsedIndexPassesTheDriversEvent) {
  start(false, true);
  ring.describe(0, {kBuffer, 4, 0, 0});
  ring.set_used_event(2); // after the third
  for (uint16_t turn = 0; turn < 6; ++turn) {
    ring.offer(0);
    serve_one();
    EXPECT_EQ(queue.take_interrupt(), turn == 2) << turn;
  }
  // Several at once, over the end of the 16 bits too.
  ring.set_available_index(6);
  for (uint32_t shown = 6; shown < 65'534; ++shown) {
    ring.offer(0);
    serve_one();
  }
  (void)queue.take_interrupt();
  ring.set_used_event(65'535);
  for (int many = 0; many < 3; ++many)
    ring.offer(0);
  for (int many = 0; many < 3; ++many) {
    ASSERT_TRUE(queue.next(chain));
    queue.put(chain, 0);
  }
  queue.publish(); // 65534, 65535, 0
  EXPECT_TRUE(queue.take_interrupt());
}

// ---- what the host writes, noted ----------------------------------------------------------------------------

// The used ring's flags and index at one page's end, its entries and the event index on the next.
constexpr uint64_t kUsedFlags = 0x6'0000;
constexpr uint64_t kUsedEntries = 0x6'1000;

class QueueNotes : public QueueTest {
protected:
  void start_apart(bool event_index) {
    Queue::Layout layout = ring.layout();
    layout.event_index = event_index;
    layout.used = kUsedEntries - 4;
    queue.start(layout);
    ASSERT_EQ(queue.broken(), nullptr);
    ring.describe(0, {kBuffer, 4, kNext, 1});
    ring.describe(1, {kBuffer + 0x2ffe, 4, kNext | kWrite, 2}); // over a page's end
    ring.describe(2, {kBuffer + 0x7000, 1, kWrite, 0});
  }
  using Pages = std::vector<Gpa>;
};

TEST_F(QueueNotes, HaveTheWritableBuffersOfAChainWhenItIsPut) {
  start_apart(true);
  ring.offer(0);
  ASSERT_TRUE(queue.next(chain));
  EXPECT_EQ(written.take(), Pages{}); // nothing was filled yet
  queue.put(chain, 0);
  EXPECT_EQ(written.take(),
            (Pages{Gpa{kBuffer + 0x2000}, Gpa{kBuffer + 0x3000}, Gpa{kBuffer + 0x7000}, Gpa{kUsedEntries}}));
  queue.publish();
  EXPECT_EQ(written.take(), Pages{Gpa{kUsedFlags}});
  EXPECT_EQ(written.count(), 0U); // data, no code
}

TEST_F(QueueNotes, HaveTheBuffersOfAChainAlsoWhereTheQueueBroke) {
  start_apart(true);
  ring.offer(0);
  ASSERT_TRUE(queue.next(chain));
  queue.declare_broken("for a reason");
  queue.put(chain, 4);
  EXPECT_EQ(written.take(), (Pages{Gpa{kBuffer + 0x2000}, Gpa{kBuffer + 0x3000}, Gpa{kBuffer + 0x7000}}));
}

TEST_F(QueueNotes, HaveTheEventIndex) {
  start_apart(true);
  EXPECT_FALSE(queue.ask_for_notice());
  EXPECT_EQ(written.take(), Pages{Gpa{kUsedEntries}});
}

TEST_F(QueueNotes, HaveTheFlagsBothWays) {
  start_apart(false);
  ring.offer(0);
  ASSERT_TRUE(queue.next(chain)); // notices off
  EXPECT_EQ(written.take(), Pages{Gpa{kUsedFlags}});
  EXPECT_FALSE(queue.ask_for_notice()); // and on
  EXPECT_EQ(written.take(), Pages{Gpa{kUsedFlags}});
}

TEST_F(QueueTest, BeginsAnewWhenItIsStartedAgain) {
  start();
  ring.describe(0, {kBuffer, 4, 0, 0});
  for (int turn = 0; turn < 3; ++turn) {
    ring.offer(0);
    serve_one();
  }
  queue.stop();
  EXPECT_FALSE(queue.next(chain));
  ring.set_available_index(0);
  start();
  EXPECT_FALSE(queue.next(chain));
  ring.offer(0);
  serve_one();
  EXPECT_EQ(ring.used_index(), 1);
}

} // namespace
} // namespace stopvisor::vmm::virtio
