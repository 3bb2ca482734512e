// SPDX-License-Identifier: Apache-2.0
// A set of pages has what was added to it, and nothing that is no memory.
#include "vmm/dirty_pages.h"

#include <gtest/gtest.h>

namespace stopvisor::vmm {
namespace {

// 100 pages, a hole, 64 pages.
const std::vector<MemorySlot> kSlots{{Gpa{0}, 100 * kPageBytes, nullptr},
                                     {Gpa{0x1'0000'0000}, 64 * kPageBytes, nullptr}};

std::vector<uint64_t> numbers(const DirtyPages& pages) {
  std::vector<uint64_t> list;
  for (const DirtyPages::Slot& slot : pages.slots())
    for (uint64_t page = 0; page < slot.words.size() * DirtyPages::kWordPages; ++page)
      if ((slot.words[page / 64] >> (page % 64) & 1) != 0)
        list.push_back(slot.first + page);
  return list;
}

TEST(DirtyPages, AreNoneAtFirstAndAfterAClear) {
  DirtyPages pages(kSlots);
  EXPECT_TRUE(pages.empty());
  EXPECT_EQ(pages.slots()[1].first, 100U);
  pages.add(Gpa{0x1'0000'0000}, 1);
  EXPECT_FALSE(pages.empty());
  pages.clear();
  EXPECT_TRUE(pages.empty());
}

TEST(DirtyPages, AreAllThatAByteOfWasAdded) {
  DirtyPages pages(kSlots);
  pages.add(Gpa{2 * kPageBytes - 1}, 2);                // over a page's end
  pages.add(Gpa{62 * kPageBytes}, 3 * kPageBytes);      // over a word's end
  pages.add(Gpa{99 * kPageBytes + 7}, 10 * kPageBytes); // past the slot's end
  pages.add(Gpa{0xffff'f000}, 2 * kPageBytes);          // from the hole on
  pages.add(Gpa{0x1'0000'0000 + 63 * kPageBytes}, ~uint64_t{0});
  pages.add(Gpa{5 * kPageBytes}, 0);
  pages.add(Gpa{0x8000'0000}, 8); // no memory
  pages.add(Gpa{~uint64_t{0}}, 8);
  EXPECT_EQ(numbers(pages), (std::vector<uint64_t>{1, 2, 62, 63, 64, 99, 100, 163}));
  EXPECT_EQ(pages.count(), 8U);
}

TEST(DirtyPages, OfAllHaveNoneBeyondASlotsEnd) {
  DirtyPages pages(kSlots);
  pages.add_all();
  EXPECT_EQ(pages.count(), 164U);
  EXPECT_EQ(pages.slots()[0].words[1], (uint64_t{1} << 36) - 1);
  pages.clear();
  pages.add_words(0, std::vector<uint64_t>(5, ~uint64_t{0})); // more words than there are
  EXPECT_EQ(pages.count(), 100U);
  pages.clear();
  pages.add(Gpa{0}, 0x2'0000'0000);
  EXPECT_EQ(pages.count(), 164U);
}

TEST(DirtyPages, OfTwoSetsAreInTheirSum) {
  DirtyPages some(kSlots);
  some.add(Gpa{0}, 1);
  DirtyPages others(kSlots);
  others.add(Gpa{0x1'0000'1000}, 1);
  others.add_words(0, std::vector<uint64_t>{2}, 1);
  some.add(others);
  EXPECT_EQ(numbers(some), (std::vector<uint64_t>{0, 65, 101}));
}

} // namespace
} // namespace stopvisor::vmm
