// SPDX-License-Identifier: Apache-2.0
// Pages the host wrote are told once each; and a serialised processor goes on where it was.
#include <atomic>
#include <latch>
#include <thread>

#include <gtest/gtest.h>

#include "vmm/serialise.h"
#include "vmm/written_pages.h"

namespace stopvisor::vmm {
namespace {

TEST(WrittenPages, AreToldOnceEachInOrder) {
  const std::vector<MemorySlot> slots{{Gpa{0}, 0x20'0000, nullptr}, {Gpa{0x1'0000'0000}, 0x4000, nullptr}};
  WrittenPages pages(slots);
  EXPECT_TRUE(pages.take().empty());
  pages.note(Gpa{0x1'0000'3ffc}, 4);
  pages.note(Gpa{0x1fff}, 2); // over a page's end
  pages.note(Gpa{0x1ffe}, 1);
  pages.note(Gpa{0x1f'ffff}, 0x1000); // past the slot's end
  pages.note(Gpa{0x8000'0000}, 8);    // no memory
  pages.note(Gpa{0x5000}, 0);
  EXPECT_EQ(pages.take(), (std::vector<Gpa>{Gpa{0x1000}, Gpa{0x2000}, Gpa{0x1f'f000}, Gpa{0x1'0000'3000}}));
  EXPECT_TRUE(pages.take().empty());
}

TEST(WrittenPages, AreFoundByTheHostsAddressesToo) {
  std::vector<std::byte> host(0x4000);
  WrittenPages pages(std::vector<MemorySlot>{{Gpa{0x8000}, 0x4000, host.data()}});
  const uint64_t before = pages.count();
  pages.note(std::span(host).subspan(0x1ffe, 4));
  EXPECT_EQ(pages.take(), (std::vector<Gpa>{Gpa{0x9000}, Gpa{0xa000}}));
  EXPECT_NE(pages.count(), before);
}

TEST(WrittenPages, OfDataAreToldAndAreNoCode) {
  std::vector<std::byte> host(0x4000);
  WrittenPages pages(std::vector<MemorySlot>{{Gpa{0x8000}, 0x4000, host.data()}});
  const uint64_t before = pages.count();
  pages.note_data(std::span(host).subspan(0x1ffe, 4));
  pages.note_data(Gpa{0xb000}, 1);
  pages.note_data(std::vector<std::byte>(4)); // no memory
  EXPECT_EQ(pages.take(), (std::vector<Gpa>{Gpa{0x9000}, Gpa{0xa000}, Gpa{0xb000}}));
  EXPECT_EQ(pages.count(), before);
}

TEST(WrittenPages, AreAllOfThemAfterAReset) {
  const std::vector<MemorySlot> slots{{Gpa{0}, 70 * kPageBytes, nullptr}, {Gpa{0x1'0000'0000}, 0x4000, nullptr}};
  WrittenPages pages(slots);
  pages.note_all();
  DirtyPages taken(slots);
  pages.take(taken);
  EXPECT_EQ(taken.count(), 74U);
  EXPECT_TRUE(pages.take().empty());
}

// Whoever writes from outside is either not in the answer, and has not begun, or it is.
TEST(WrittenPages, ThatAreWrittenOutsideOfStopsAreWaitedFor) {
  std::vector<std::byte> host(0x1000);
  const std::vector<MemorySlot> slots{{Gpa{0}, 0x1000, host.data()}};
  WrittenPages pages(slots);
  std::atomic<bool> written{false};
  std::latch inside(1);
  std::thread writer([&] {
    const auto outside = pages.write_outside();
    inside.count_down();
    for (int turn = 0; turn < 100; ++turn)
      std::this_thread::yield();
    written = true;
    pages.note(host);
  });
  inside.wait();
  EXPECT_EQ(pages.take().size(), 1U);
  EXPECT_TRUE(written);
  writer.join();
}

TEST(Serialise, LeavesEverythingAsItWas) {
  volatile uint64_t before = 0x1234;
  for (int i = 0; i < 1000; ++i)
    serialise_this_processor();
  EXPECT_EQ(before, 0x1234U);
}

} // namespace
} // namespace stopvisor::vmm
